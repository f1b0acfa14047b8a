"""The demonstration model's vocabulary: trained on the questions of the tasks."""

from __future__ import annotations

import numpy as np

from .batches import SYSTEM
from .tasks import TASKS, make_example
from .tokenizer import Vocabulary, train

N_MERGES = 256
_PICTURES = 300  # a task


def make_vocabulary() -> Vocabulary:
    texts = [f"X {SYSTEM}"] * 1000
    for task in TASKS:
        rng = np.random.default_rng(7)
        for _ in range(_PICTURES):
            texts += [turn.question for turn in make_example(rng, task, difficulty=0.0).turns]
    return train(texts, N_MERGES)
