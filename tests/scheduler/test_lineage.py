"""The same bits under any schedule, on the real core: whatever was cached, evicted, preempted, forked, cancelled,
drafted or read from the disk after a restart, in whatever chunks a prompt was computed and whoever ran beside it, an
answer and its log probabilities are those of a model that has done nothing else.

KIMI_HISTORIES sets how many schedules each case draws (default 2).
"""

from __future__ import annotations

import copy
import os

import numpy as np
from kernel_support import every_isa_of

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp._core import PAGE_POSITIONS
from kimi_vl_cpp.scheduler import tasks
from kimi_vl_cpp.scheduler.drafts import Drafter, DraftLength
from kimi_vl_cpp.testing import ROWS_OF_256

HISTORIES = int(os.environ.get("KIMI_HISTORIES", "2"))
CASES = [("Q4_K_M", "f16", "int8"), ("Q8_0", "q8_0", "int8"), ("F32", "f32", "int8"), ("Q8_0", "f16", "float")]
EVENTS = ["start", "fork", "read", "cancel", "clear", "restart"]
CHANCES = [0.17, 0.03, 0.66, 0.07, 0.04, 0.03]
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
            "temperature": float(rng.choice([0.0, 0.6, 1.0])),
            "top_p": 0.95,
            "max_new_tokens": int(rng.integers(1, 120)),
            "ignore_eos": True,
            "logprobs": 0 if rng.random() < 0.5 else None,
        }

    @staticmethod
    def _text(rng: np.random.Generator, n_most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(1, n_most))))

    def again(self, seed: int) -> Question:
        """The same with another seed."""
        other = copy.copy(self)
        other.options = {**self.options, "seed": 100 + seed}
        return other

    def start(self, model: KimiVL, **options):
        return model.start(self.messages, self.pictures, **self.options, **options)

    def alone_in(self, fresh: KimiVL):
        """The response of a model that remembers nothing."""
        response = self.start(fresh, cache="off").drain()
        fresh.cache.clear()
        assert fresh.cache.info().pages == 0 and response.usage.cached_tokens == 0
        return response


class Models:
    """One model after another over the same cache folder, each with drafts that are right up to some place.

    answers: the tokens of every answer that is asked for."""

    def __init__(self, path, rng: np.random.Generator, monkeypatch, **options) -> None:
        self.answers: list[list[int]] = []
        self._open = lambda: KimiVL(path, **options)
        self._rng = rng

        def draft(drafter: Drafter, n: int, stop_ids) -> list[int]:
            wrong = [int(token) for token in rng.integers(0, 300, n)]
            right = self._following(drafter._ids)[: int(rng.integers(0, n + 1))]
            return [*right, *wrong][:n]

        monkeypatch.setattr(Drafter, "draft", draft)
        monkeypatch.setattr(DraftLength, "best", lambda length, rate, n_rows, n_most: int(rng.integers(0, n_most + 1)))
        monkeypatch.setattr(tasks, "_LARGEST_CHUNK", int(rng.integers(1, 8)) * PAGE_POSITIONS)
        self.model = self._opened()

    def _following(self, past: list[int]) -> list[int]:
        """What comes next in the answer that these tokens end with most of."""
        best: list[int] = []
        longest = 0
        for answer in self.answers:
            n = max((n for n in range(1, len(answer)) if past[-n:] == answer[:n]), default=0)
            if n > longest:
                longest, best = n, answer[n:]
        return best

    def _opened(self) -> KimiVL:
        model = self._open()
        model.loaded.conductor.index.disk.least = int(self._rng.choice([64, 256]))
        return model

    def restart(self) -> None:
        self.model.close()
        self.model = self._opened()


def check(tiny, options: dict, n_pages: int, seed: int, folder, monkeypatch) -> tuple[int, int]:
    """One history under one schedule. Returns how many positions came from the disk and how many drafts were right."""
    rng = np.random.default_rng(seed)
    questions: list[Question] = []
    running: list[tuple[Question, object]] = []
    ended: list[tuple[Question, object]] = []
    with KimiVL(tiny.text, n_ctx=N_CTX, speculate="off", **options) as fresh, monkeypatch.context() as patch:
        budget = n_pages * fresh.loaded.conductor.index.pool.page_bytes
        caching = {"kv_memory": budget, "cache_dir": folder}
        models = Models(tiny.text, rng, patch, n_ctx=N_CTX, **caching, **options)
        for _ in range(120):
            event = rng.choice(EVENTS, p=CHANCES)
            index = models.model.loaded.conductor.index
            if event in ("start", "fork") and len(questions) < 12:
                question = Question(tiny, rng, questions)
                for n in range(3 if event == "fork" else 1):  # several answers to one question
                    questions.append(question.again(seed=n) if n else question)
                    questions[-1].alone = questions[-1].alone_in(fresh)
                    models.answers.append(list(questions[-1].alone.token_ids))
                    running.append((questions[-1], questions[-1].start(models.model)))
                    running[-1][1].begin()
            elif event == "clear":
                models.model.loaded.gate.call(index.clear)
            elif event == "restart":
                for question, stream in running:
                    stream.close()
                    ended.append((question, stream))
                running.clear()
                models.restart()
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
        model = models.model
        index = model.loaded.conductor.index
        assert model.loaded.conductor.n_jobs == 0
        assert all(node.n_users == 0 for node in index.nodes())
        assert index.pool.n_pages == len(index)
        assert not model.cache.info().disk.notices
        model.close()
    assert ended
    for question, stream in ended:
        alone = question.alone
        got = stream.result
        n = len(got.token_ids)
        assert got.token_ids == alone.token_ids[:n], f"seed {seed}, {got.usage}"
        assert got.logprobs == alone.logprobs[: len(got.logprobs)], f"seed {seed}, {got.usage}"
        assert got.finish_reason == "cancelled" or n == len(alone.token_ids)
    usages = [stream.result.usage for _, stream in ended]
    return sum(one.restored_tokens for one in usages), sum(one.accepted_tokens for one in usages)


@every_isa_of("text_type, kv_type, activations", CASES)
def test_under_any_schedule_answers_have_the_bits_of_a_fresh_model(
    tiny_model, isa, text_type, kv_type, activations, tmp_path, monkeypatch
):
    tiny = tiny_model(seed=6, text_type=text_type, vision_type="Q8_0", **ROWS_OF_256)
    options = {"isa": isa, "kv_type": kv_type, "activations": activations, "n_threads": 2}
    least = N_CTX // PAGE_POSITIONS + 1
    found = [
        check(tiny, options, least + 2 * (seed % 3), seed, tmp_path / str(seed), monkeypatch)
        for seed in range(HISTORIES)
    ]
    assert sum(n_accepted for _, n_accepted in found) > 0, "no draft was right"
    assert HISTORIES < 10 or sum(n_restored for n_restored, _ in found) > 0, "nothing was restored"
