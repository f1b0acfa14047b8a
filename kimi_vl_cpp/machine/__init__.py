"""What the computer has: memory, and processors as the operating system describes them. Measures nothing and opens no
model."""
