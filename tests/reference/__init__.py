"""The network in NumPy: the executable specification that the engine is held to.

One file per module, written for reading, in float64 by default. It takes weights by Hugging Face's names
(`kimi_vl_cpp.testing.TinyModel.weights`, `read_model(...)`) and knows nothing of files or of the engine.

    net = Network(tiny.weights, tiny.config)
    embeddings = net.encode_image(pixels)                 # [n_tokens, hidden_size]
    logits = net.logits([ids, embeddings, more_ids])      # [n_positions, vocab_size]
"""

from .network import Network, Timeline

__all__ = ["Network", "Timeline"]
