"""How the built-in demonstration model is made: pictures, training, export. Not part of the package."""
