"""The same bits under any schedule, on the real core: whatever was cached, evicted, preempted, forked or cancelled and
whoever ran beside it, an answer and its log probabilities are those of a model that has done nothing else.

KIMI_HISTORIES sets how many schedules each case draws (default 2).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import PAGE_POSITIONS
from kimi_vl_cpp.testing import ROWS_OF_256

HISTORIES = int(os.environ.get("KIMI_HISTORIES", "2"))
CASES = [("Q4_K_M", "f16", "int8"), ("Q8_0", "q8_0", "int8"), ("F32", "f32", "int8"), ("Q8_0", "f16", "float")]
N_CTX = 1024
WORDS = "what is in this picture and how many of them are red or blue".split()


class Question:
    """A request, drawn at random: a history of turns, perhaps with a picture, and how its answer is sampled."""

    def __init__(self, tiny, rng: np.random.Generator, earlier: list[Question]) -> None:
        self.pictures: list[np.ndarray] = []
        self.messages: list[dict] = []
        if earlier and rng.random() < 0.7:  # a branch of one before, or the same again
            before = earlier[rng.integers(len(earlier))]
            self.pictures, self.messages = list(before.pictures), list(before.messages)
        if not self.messages or (len(self.messages) < 4 and rng.random() < 0.7):
            if self.messages:
                self.messages.append({"role": "assistant", "content": self._text(rng, 25)})
            content: list[dict] = [{"type": "text", "text": self._text(rng, 40)}]
            if not self.pictures and rng.random() < 0.5:
                height, width = (28 * int(side) for side in rng.integers(1, 9, 2))
                self.pictures = [tiny.random_picture(height, width, seed=int(rng.integers(3)))]
                content.insert(0, {"type": "image", "image": 0})
            self.messages.append({"role": "user", "content": content})
        self.options = {
            "seed": int(rng.integers(3)),
            "temperature": 1.0,
            "top_p": 0.95,
            "max_new_tokens": int(rng.integers(1, 120)),
            "ignore_eos": True,
            "logprobs": 0 if rng.random() < 0.5 else None,
        }

    @staticmethod
    def _text(rng: np.random.Generator, n_most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(1, n_most))))

    def start(self, model: KimiVL):
        return model.start(self.messages, self.pictures, **self.options)


def check(tiny, options: dict, n_pages: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    questions: list[Question] = []
    running: list[tuple[Question, object]] = []
    ended: list[tuple[Question, object]] = []
    with KimiVL(tiny.text, n_ctx=N_CTX, **options) as model:
        pool = model.loaded.conductor.index.pool
    with KimiVL(tiny.text, n_ctx=N_CTX, kv_memory=n_pages * pool.page_bytes, **options) as model:
        index = model.loaded.conductor.index
        for _ in range(120):
            event = rng.choice(
                ["start", "read", "read", "read", "cancel", "clear"], p=[0.2, 0.22, 0.22, 0.22, 0.1, 0.04]
            )
            if event == "start" and len(questions) < 10:
                questions.append(Question(tiny, rng, questions))
                running.append((questions[-1], questions[-1].start(model)))
            elif event == "clear":
                model.loaded.gate.call(index.clear)
            elif running:
                which = int(rng.integers(len(running)))
                question, stream = running[which]
                if event == "cancel":
                    stream.close()
                    ended.append(running.pop(which))
                    continue
                for _ in range(int(rng.integers(1, 30))):
                    if next(stream, None) is None:
                        ended.append(running.pop(which))
                        break
            assert index.pool.bytes_in_use <= index.pool.budget
        for question, stream in running:
            stream.drain()
            ended.append((question, stream))
        assert model.loaded.conductor.n_jobs == 0
        assert all(node.n_users == 0 for node in index.nodes())
        assert index.pool.n_pages == len(index)
    assert ended
    for question, stream in ended:
        with KimiVL(tiny.text, n_ctx=N_CTX, **options) as fresh:
            alone = question.start(fresh).drain()
        got = stream.result
        n = len(got.token_ids)
        assert got.token_ids == alone.token_ids[:n], f"seed {seed}, {got.usage}"
        assert got.logprobs == alone.logprobs[: len(got.logprobs)], f"seed {seed}, {got.usage}"
        assert got.finish_reason == "cancelled" or n == len(alone.token_ids)


@pytest.mark.parametrize(("text_type", "kv_type", "activations"), CASES)
def test_under_any_schedule_answers_have_the_bits_of_a_fresh_model(tiny_model, isa, text_type, kv_type, activations):
    tiny = tiny_model(seed=6, text_type=text_type, vision_type="Q8_0", **ROWS_OF_256)
    options = {"isa": isa, "kv_type": kv_type, "activations": activations, "n_threads": 2}
    least = N_CTX // PAGE_POSITIONS + 1
    for seed in range(HISTORIES):
        check(tiny, options, least + 2 * (seed % 3), seed)
