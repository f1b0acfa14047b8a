"""What is read: checkpoints, GGUF files, their configuration, vocabulary and tensors. Every byte is untrusted. Writes
nothing and chooses no type."""
