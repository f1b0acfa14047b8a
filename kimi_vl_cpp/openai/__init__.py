"""OpenAI's chat completions as dicts: translated into requests, and answers translated back. Pure translation."""
