"""What is written: metadata, the layout of the files, the stream of tensors, and output that is whole or absent.
Chooses no type."""
