"""What quantization lost: two files over the same tokens, logit by logit and weight by weight, with a report as a page.
Writes no model."""
