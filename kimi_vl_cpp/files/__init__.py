"""The files of a model: which exist, which belong together, what they must contain and what they say about themselves.
Opens no engine and reads no weights."""
