"""`kimi-vl chat`: the loop, its commands, reading lines, and saved conversations."""
