"""Strings to token ids and back: vocabularies, tokenizers, the chat template, thinking marks and stop strings. Knows
no model and no image."""
