"""Public benchmarks in their own formats: what is asked, how an answer scores, and what the paper says.

Own code from the published rules. Reads the files that the benchmarks' makers and VLMEvalKit publish, ships none of
them, and asks no other model: what only such a judge could decide is left undecided and counted apart.
"""
