"""What is remembered between calls, and for how long. Knows digests and budgets; knows no queue and no request."""
