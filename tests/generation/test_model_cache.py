"""What a user can ask of the caches and do to them."""

from __future__ import annotations

import fake_core
import numpy as np
import pytest

from kimi_vl_cpp import BadRequest, KimiVL

LONG = [{"role": "user", "content": "word " * 60}]


def test_figures_are_those_of_what_was_asked(script, model):
    before = model.cache.info()
    assert (before.pages, before.bytes, before.pictures) == (0, 0, 0) and before.budget >= 9 * fake_core.PAGE_BYTES
    usage = model.chat("Hi", [np.zeros((56, 84, 3), np.uint8)]).usage
    again = model.chat("Hi", [np.zeros((56, 84, 3), np.uint8)]).usage
    info = model.cache.info()
    assert info.pages == -(-usage.total_tokens // info.page_positions) and info.bytes == info.pages * 1000
    assert info.pictures == 1 and info.picture_bytes == 6 * fake_core.HIDDEN * 4
    assert info.hit_positions == again.cached_tokens
    assert info.missed_positions == usage.prompt_tokens + again.prompt_tokens - again.cached_tokens


def test_a_prefetched_prompt_is_answered_from_the_cache(script, model):
    usage = model.cache.prefetch(LONG)
    assert usage.completion_tokens == 0 and script.steps == []
    asked = model.start(LONG).drain().usage
    assert asked.cached_tokens == usage.prompt_tokens - 1


def test_pinned_pages_outlive_everything_else(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=1024, kv_memory=12 * fake_core.PAGE_BYTES * 100) as model:
        n = model.cache.pin(LONG)
        assert n and n % 128 == 0 and model.cache.info().pinned == n // 128
        model.cache.clear()
        assert model.cache.info().pages == n // 128
        assert model.start(LONG).drain().usage.cached_tokens >= n
        model.cache.unpin()
        model.cache.clear()
        assert model.cache.info().pages == 0
        assert model.start(LONG).drain().usage.cached_tokens == 0


def test_the_caches_of_a_closed_model_are_refused(model):
    model.close()
    for call in (model.cache.info, model.cache.clear, lambda: model.cache.pin(LONG)):
        with pytest.raises(BadRequest) as caught:
            call()
        assert caught.value.code == "engine.closed"
