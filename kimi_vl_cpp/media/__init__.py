"""Bytes to patches: which image files are accepted and within which limits, how they are decoded, and how an image
becomes the pixels and the grid that the model takes. Knows no text and no model."""
