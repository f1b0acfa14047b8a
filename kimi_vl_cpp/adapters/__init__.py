"""LoRA adapters as low-rank changes of a model's matrices: folders of PEFT and LLaMA-Factory, llama.cpp's GGUF files.

Owns what such a file may say, which matrix each of its factors belongs to, and what cannot be applied exactly and is
therefore refused. Knows no engine; who merges or multiplies is above.
"""
