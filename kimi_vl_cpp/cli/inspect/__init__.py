"""`kimi-vl inspect`: what is in a file, whether Kimi-VL can use it, and its card."""
