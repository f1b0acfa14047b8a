"""Recipes over the face: reading documents page by page, citations. Nothing below this room knows of them."""
