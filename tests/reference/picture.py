"""The size that a picture is brought to before it is cut into patches (the sizes only: Pillow does the resizing)."""

PATCH = 14


def processed_size(width, height, in_token_limit):
    """(width, height) after resizing and (width, height) after padding right and bottom to multiples of 28."""
    n_patches = (width // PATCH) * (height // PATCH)
    if n_patches > in_token_limit:
        scale = (in_token_limit / n_patches) ** 0.5
        width, height = int(width * scale), int(height * scale)
    block = 2 * PATCH
    return (width, height), (-(-width // block) * block, -(-height // block) * block)


def n_tokens(width, height):
    """Of a padded size."""
    return (width // (2 * PATCH)) * (height // (2 * PATCH))
