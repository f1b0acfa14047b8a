"""Random histories of conversations with adapters: forks, neighbours, what is cached; every answer has the bits that it
has alone, in a model with nothing in its cache."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from adapter_files import random_gguf_adapter

from kimi_vl_cpp import Conversation, KimiVL
from kimi_vl_cpp.testing import ROWS_OF_256

NAMES = (None, "x", "y", "text")
PICTURES = [np.random.default_rng(seed).integers(0, 256, (56, 84, 3), np.uint8) for seed in range(2)]
STEPS = 7


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KimiVL, KimiVL]]:
    """The one with histories, in whose cache things meet, and one that is asked after its cache was emptied."""
    made = tiny_model(seed=3, text_type="Q4_K_M", **ROWS_OF_256)
    folder = tmp_path_factory.mktemp("histories")
    lora = {
        "x": random_gguf_adapter(folder / "x.gguf", made.text, made.mmproj, seed=1),
        "y": random_gguf_adapter(folder / "y.gguf", made.text, made.mmproj, seed=2, rank=3),
        "text": random_gguf_adapter(folder / "text.gguf", made.text, seed=3, only="attn_"),
    }
    with (
        KimiVL(made.text, lora=lora, n_ctx=2048, n_threads=1) as model,
        KimiVL(made.text, lora=lora, n_ctx=2048, n_threads=1) as alone,
    ):
        yield model, alone


def bits(response: Any) -> tuple[Any, ...]:
    return response.token_ids, [one.logprob for one in response.logprobs]


def check(alone: KimiVL, talk: Conversation, got: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The last answer of a conversation against the same question asked of a model that remembers nothing."""
    alone.cache.clear()
    again = Conversation.from_dict(alone, talk.to_dict())
    assert again.lora == talk.lora and again.notices == ()
    assert bits(again.regenerate(**options)) == got


def run(models: tuple[KimiVL, KimiVL], seed: int) -> None:
    model, alone = models
    rng = random.Random(seed)
    model.cache.clear()
    talks = [model.conversation(lora=name) for name in NAMES]

    def question() -> str:
        return rng.choice(("hello ", "and ", "what is this ")) * rng.choice((1, 20, 70))

    with ThreadPoolExecutor(3) as pool:
        for _ in range(STEPS):
            chosen = rng.sample(range(len(talks)), 3)
            for index in chosen:
                talk = talks[index]
                deed = rng.choice(("ask", "fork", "undo", "clear"))
                if deed == "fork":
                    talks[index] = talk.fork()
                elif deed == "undo":
                    talk.undo()
                if deed == "clear" or talks[index].n_positions > 800:
                    talks[index].clear()
            options = {"temperature": rng.choice((0, 1.0)), "seed": seed, "max_new_tokens": 4, "logprobs": 0}
            asked = [(talks[index], question(), rng.sample(PICTURES, rng.choice((0, 0, 1)))) for index in chosen]
            answers = [pool.submit(talk.ask, text, seen, **options) for talk, text, seen in asked]
            for (talk, _, _), answer in zip(asked, answers, strict=True):
                check(alone, talk, bits(answer.result()), options)


@pytest.mark.parametrize("seed", range(2))
def test_answers_have_their_bits_whatever_was_before_and_beside(models: tuple[KimiVL, KimiVL], seed: int) -> None:
    run(models, seed)


@pytest.mark.slow
def test_answers_have_their_bits_in_many_histories(models: tuple[KimiVL, KimiVL]) -> None:
    for seed in range(2, 60):
        run(models, seed)
