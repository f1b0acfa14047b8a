"""From a checked request to pieces of text: requests, sampling options, sequences and the loop over tokens. Knows no
chat history, no dicts of other interfaces and no command line."""
