"""Conversations: turns, what is kept of them, and how they are saved and restored. Knows no command line."""
