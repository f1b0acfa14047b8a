"""What a user can ask of the caches and do to them."""

from __future__ import annotations

import fake_core
import numpy as np
import pytest

from kimi_vl_cpp import BadRequest, KimiVL
from kimi_vl_cpp.generation import loaded
from kimi_vl_cpp.testing import ROWS_OF_256

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


@pytest.mark.parametrize(
    ("pages", "trained_for", "n_ctx"),
    [
        (9, 1 << 17, 1024),
        (64, 1 << 17, 4096),
        (65, 1 << 17, 8192),
        (128, 1 << 17, 8192),
        (129, 1 << 17, 16384),
        (1000, 1 << 17, 32768),
        (1000, 20_000, 20_000),
        (1000, 4096, 4096),
    ],
)
def test_the_default_context_is_what_the_memory_for_it_holds_up_to_a_limit(script, pages, trained_for, n_ctx):
    script.context_length = trained_for
    memory = pages * 128 * fake_core.Engine("fake.gguf").kv_bytes_per_token()
    with KimiVL("fake-Instruct.gguf", kv_memory=memory) as model:
        assert model.n_ctx == n_ctx
        assert model.cache.info().pages == 0  # nothing is taken before there are positions
    with KimiVL("fake-Instruct.gguf", n_ctx=1024, kv_memory=memory) as model:
        assert model.n_ctx == 1024  # what is asked for stays


def test_what_is_kept_by_default_is_no_larger_than_the_weights(script, monkeypatch):
    monkeypatch.setattr(loaded, "free_bytes", lambda: 400 << 30)
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as model:
        assert model.cache.info().budget == 64 << 20
    monkeypatch.setattr(loaded, "free_bytes", lambda: 100 << 20)
    with KimiVL("fake-Instruct.gguf", n_ctx=1024) as model:
        assert model.cache.info().budget == 25 << 20
    with KimiVL("fake-Instruct.gguf", n_ctx=1024, kv_memory=1 << 30) as model:
        assert model.cache.info().budget == 1 << 30


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


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [("use", "use", True), ("use", "read", True), ("use", "off", False), ("read", "use", False), ("off", "use", False)],
)
def test_a_request_says_whether_it_takes_from_the_cache_and_leaves_there(script, model, first, second, found):
    script.answer = None
    options = {"seed": 1, "temperature": 1.0, "max_new_tokens": 40}
    one = model.start(LONG, cache=first, **options).drain()
    other = model.start(LONG, cache=second, **options).drain()
    assert (other.usage.cached_tokens > 0) == found
    assert one.token_ids == other.token_ids
    if second == "read":
        assert model.cache.info().pages == -(-one.usage.total_tokens // 128)


def test_requests_with_another_salt_share_nothing(script, model):
    model.start(LONG, cache_salt="a").drain()
    assert model.start(LONG, cache_salt="b").drain().usage.cached_tokens == 0
    assert model.start(LONG).drain().usage.cached_tokens == 0
    assert model.start(LONG, cache_salt="a").drain().usage.cached_tokens > 0


@pytest.mark.parametrize(
    "options", [{"cache": "never"}, {"cache": 1}, {"cache_salt": 5}, {"priority": 101}, {"priority": True}]
)
def test_a_wrong_option_of_the_cache_is_named(script, model, options):
    with pytest.raises(BadRequest) as caught:
        model.chat("Hi", **options)
    assert caught.value.code == f"request.{next(iter(options))}"


def test_what_is_computed_while_somebody_observes_stays_out_of_the_cache(tiny_model):
    """Observed rows are computed in the absorbed form: in the cache they would change later answers."""
    tiny = tiny_model(seed=6, text_type="Q8_0", vision_type="Q8_0", **ROWS_OF_256)
    options = {"seed": 1, "temperature": 1.0, "max_new_tokens": 8, "ignore_eos": True, "logprobs": 0}
    question = {"prompt": "word " * 120, **options}
    with KimiVL(tiny.text, n_ctx=1024) as fresh:
        plain = fresh.chat(**question)
    with KimiVL(tiny.text, n_ctx=1024) as model:
        before = model.start([{"role": "user", "content": "before " * 90}], **options)
        next(before)  # under way when the observing begins
        observation = model.raw.observe()
        observed = model.chat(**question)
        before.drain()
        assert observation.counts()
        observation.close()
        later = model.chat(**question)
    assert observed.usage.cached_tokens == 0
    assert later.usage.cached_tokens < 128  # of the template's beginning, computed before the observing
    assert later.logprobs == plain.logprobs
    assert observed.logprobs != plain.logprobs  # else this test shows nothing


def test_the_caches_of_a_closed_model_are_refused(model):
    model.close()
    for call in (model.cache.info, model.cache.clear, lambda: model.cache.pin(LONG)):
        with pytest.raises(BadRequest) as caught:
            call()
        assert caught.value.code == "engine.closed"
