"""The whole model over one set of weights."""

import numpy as np

from . import decoder, moonvit, projector


class Network:
    """weights: HF name -> array; config: {"text": {...}, "vision": {...} or None}. All arithmetic in dtype."""

    def __init__(self, weights, config, dtype=np.float64):
        self.weights = {name: np.asarray(value, dtype) for name, value in weights.items()}
        self.text, self.vision, self.dtype = config["text"], config["vision"], dtype

    def vision_tower(self, pixels):
        """uint8 [H, W, 3] -> [(H / patch) * (W / patch), vision hidden_size]."""
        return moonvit.tower(pixels, self.weights, self.vision)

    def encode_image(self, pixels):
        """uint8 [H, W, 3] -> [n_tokens, hidden_size]."""
        rows, cols = (side // self.vision["patch_size"] for side in pixels.shape[:2])
        return projector.project(self.vision_tower(pixels), rows, cols, self.weights)

    def embed(self, part):
        """Token ids [n] or embeddings [n, hidden_size] -> embeddings."""
        part = np.asarray(part)
        if part.ndim == 2:
            return part.astype(self.dtype)
        return self.weights["language_model.model.embed_tokens.weight"][part]

    def timeline(self, absorbed=False):
        return Timeline(self, absorbed)

    def logits(self, parts, absorbed=False):
        """Parts (ids or embeddings) from the beginning -> [n_positions, vocab_size]."""
        return self.timeline(absorbed).extend(parts)

    def greedy(self, parts, n):
        """n token ids after the parts: the most likely one each time, without stopping."""
        timeline, ids = self.timeline(absorbed=True), []
        logits = timeline.extend(parts)[-1]
        while len(ids) < n:
            ids.append(int(logits.argmax()))
            logits = timeline.extend([ids[-1:]])[-1]
        return ids


class Timeline:
    """Positions one after another. margin: the least routing margin of each position so far."""

    def __init__(self, network, absorbed=False):
        self.network, self.absorbed = network, absorbed
        self.caches = decoder.empty_cache(network.text, network.dtype)
        self.margin = np.zeros(0)

    def extend(self, parts):
        """Appends the parts; logits of the new positions [n, vocab_size]."""
        h = np.concatenate([self.network.embed(part) for part in parts])
        net = self.network
        logits, self.caches, margin = decoder.forward(h, self.caches, net.weights, net.text, self.absorbed)
        self.margin = np.concatenate([self.margin, margin])
        return logits
