"""The sampler against its definition in NumPy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_vl_cpp._core import SAMPLER_LIMITS, Sampler
from kimi_vl_cpp.errors import BadModelFile, BadRequest

N = 500


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(N) * scale).astype(np.float32)


def allowed(x: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Ids that may come out, by the definition: temperature, then min-p, top-k and top-p over what is left."""
    p = np.exp((x.astype(np.float64) - x.max()) / temperature)
    order = sorted(range(len(x)), key=lambda i: (-p[i], i))
    order = [i for i in order if p[i] >= min_p and p[i] > 1e-12]
    if top_k:
        order = order[:top_k]
    total, kept, out = sum(p[i] for i in order), 0.0, []
    for i in order:
        if out and kept >= top_p * total:
            break
        out.append(i)
        kept += p[i]
    return set(out)


class SlowSampler:
    """What Sampler does, with everything sorted: same options, same ids."""

    def __init__(self, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
        self.state = seed
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p

    def uniform(self) -> float:
        """SplitMix64."""
        mask = 2**64 - 1
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def sample(self, x: np.ndarray) -> int:
        x = np.where(np.isfinite(x), x, np.float32(-np.inf))
        if self.temperature == 0 or self.top_k == 1:
            return int(x.argmax())
        with np.errstate(under="ignore"):
            exponent = (x - x.max()) * (np.float32(1) / np.float32(self.temperature))
            floor = np.float32(max(-27.6, np.log(np.float32(self.min_p)) if self.min_p else -27.6))
            weights = np.where(exponent >= floor, np.exp(exponent), 0).astype(np.float64)
        ids = np.flatnonzero(weights)
        if self.top_k or self.top_p < 1:
            ids = ids[np.lexsort((ids, -weights[ids]))][: self.top_k or None]
            before = np.cumsum(weights[ids]) - weights[ids]
            if self.top_p < 1:
                ids = ids[: max(1, int((before < np.float32(self.top_p) * weights[ids].sum()).sum()))]
        reached = np.cumsum(weights[ids])
        return int(ids[min(int((reached <= self.uniform() * reached[-1]).sum()), len(ids) - 1)])


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    n=st.sampled_from([1, 2, 255, 256, 257, 2000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 3.0, 20.0]),
    steps=st.sampled_from([None, 1.0, 0.25]),
    temperature=st.sampled_from([0.0, 0.2, 0.6, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 1000, 10**9]),
    top_p=st.sampled_from([1.0, 1.0, 0.99, 0.9, 0.5, 0.1, 0.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)
def test_ids_are_those_of_sorting_everything(seed, n, spread, steps, temperature, top_k, top_p, min_p) -> None:
    """steps: logits are multiples of it, so that many are equal."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * spread).astype(np.float32)
    if steps is not None:
        x = (np.round(x / steps) * steps).astype(np.float32)
    x[rng.random(n) < 0.01] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    if not np.isfinite(x).any():
        x[-1] = 0.0
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    fast, slow = Sampler(seed=seed, **options), SlowSampler(seed, **options)
    assert [fast.sample(x) for _ in range(4)] == [slow.sample(x) for _ in range(4)]


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_ids_of_a_whole_vocabulary_are_those_of_sorting_it(spread: float, top_p: float) -> None:
    x = (np.random.default_rng(6).standard_normal(163840) * spread).astype(np.float32)
    fast, slow = Sampler(seed=9, temperature=0.6, top_p=top_p), SlowSampler(9, 0.6, 0, top_p, 0.0)
    assert [fast.sample(x) for _ in range(4)] == [slow.sample(x) for _ in range(4)]


def draw(n: int, x: np.ndarray, **options: float) -> list[int]:
    sampler = Sampler(**options)
    return [sampler.sample(x) for _ in range(n)]


def test_temperature_zero_takes_the_best_and_the_smaller_id_on_ties() -> None:
    x = logits(0)
    x[[7, 300]] = 50.0
    assert draw(3, x, temperature=0.0) == [7, 7, 7]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.7, "top_p": 0.6},
        {"temperature": 2.0, "top_p": 0.97},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.01},
    ],
    ids=str,
)
def test_only_allowed_tokens_come_out_and_all_of_them_can(options: dict[str, float]) -> None:
    x = logits(1)
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    want = allowed(x, full["temperature"], int(full["top_k"]), full["top_p"], full["min_p"])
    got = set(draw(4000, x, seed=3, **options))
    assert got <= want
    p = np.exp((x - x.max()) / options["temperature"])
    likely = {i for i in want if p[i] / sum(p[j] for j in want) > 0.005}  # 4000 draws miss it with e^-20
    assert likely <= got


def test_frequencies_follow_the_softmax() -> None:
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    counts = np.bincount(draw(20000, x, seed=11, temperature=1.0), minlength=4) / 20000
    # four standard errors of a binomial at 20000 draws
    assert np.all(np.abs(counts - [0.5, 0.25, 0.125, 0.125]) < 4 * np.sqrt(0.25 / 20000))


def test_a_seed_repeats_and_another_differs() -> None:
    x = logits(2)
    a = draw(50, x, seed=5, temperature=1.0)
    assert a == draw(50, x, seed=5, temperature=1.0)
    assert a != draw(50, x, seed=6, temperature=1.0)


def test_repeat_penalty_lowers_recent_tokens_on_both_sides_of_zero() -> None:
    x = np.array([2.0, 1.9, -5.0], np.float32)
    sampler = Sampler(temperature=0.0, repeat_penalty=2.0, repeat_last_n=2)
    sampler.accept(0)
    assert sampler.sample(x) == 1
    negative = np.array([-1.0, -1.5, -9.0], np.float32)
    assert sampler.sample(negative) == 1  # -1 became -2
    sampler.accept(1)
    sampler.accept(1)  # 0 left the window of two
    assert sampler.sample(x) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", 1e30),
        ("top_p", 2.0),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("top_k", -1),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -1),
    ],
)
def test_bad_options_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(BadRequest, match=name) as error:
        Sampler(**{name: value})
    assert error.value.code == f"request.{name}"


def test_logits_that_are_no_numbers_are_the_files_fault() -> None:
    with pytest.raises(BadModelFile, match="no finite number"):
        Sampler(temperature=0.0).sample(np.full(5, np.nan, np.float32))
    x = np.full(5, np.nan, np.float32)
    x[3] = -2.0
    assert Sampler(temperature=1.0).sample(x) == 3


def number(name: str) -> st.SearchStrategy[float]:
    low, high = SAMPLER_LIMITS[name]
    return st.one_of(
        st.floats(low, high),
        st.sampled_from([low, high, 5e-324, 1e-45, 1e-42, 2.9e-39, 3e-39, 1.2e-38, 1e-30, 1 - 1e-9]).filter(
            lambda value: low <= value <= high
        ),
    )


OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**64 - 1),
        "temperature": number("temperature"),
        "top_k": st.one_of(st.integers(0, 4), st.integers(*SAMPLER_LIMITS["top_k"])),
        "top_p": number("top_p"),
        "min_p": number("min_p"),
        "repeat_penalty": number("repeat_penalty"),
        "repeat_last_n": st.one_of(st.integers(0, 3), st.integers(*SAMPLER_LIMITS["repeat_last_n"])),
    }
)
LOGITS = st.lists(
    st.one_of(
        st.floats(width=32),
        st.sampled_from([0.0, -0.0, 1e-45, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan")]),
        st.floats(-20, 20, width=32),
    ),
    min_size=1,
    max_size=200,
)


@settings(max_examples=1500, deadline=None)
@given(OPTIONS, LOGITS, st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 200), max_size=20))
def test_every_allowed_option_on_every_logit_gives_a_finite_token(
    options: dict[str, float], values: list[float], seen: list[int]
) -> None:
    x = np.array(values, np.float32)
    sampler = Sampler(**options)
    for token in seen:
        sampler.accept(token)
    for _ in range(3):
        if not np.isfinite(x).any():
            with pytest.raises(BadModelFile):
                sampler.sample(x)
            continue
        token = sampler.sample(x)
        assert 0 <= token < len(x) and np.isfinite(x[token])
        sampler.accept(token)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-42, 1e-40, 2.9e-39, 1e-38, 1e-30])
def test_a_temperature_near_zero_takes_the_best(temperature: float) -> None:
    x = logits(4)
    assert set(draw(20, x, temperature=temperature)) == {int(x.argmax())}


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1e-45}, {"min_p": 1.0}, {"top_k": 1}], ids=str)
def test_the_narrowest_filter_keeps_the_best_alone(options: dict[str, float]) -> None:
    x = logits(5)
    assert set(draw(20, x, temperature=100.0, **options)) == {int(x.argmax())}


@pytest.mark.parametrize("name", SAMPLER_LIMITS)
def test_the_limits_that_the_core_names_are_those_it_enforces(name: str) -> None:
    low, high = SAMPLER_LIMITS[name]
    step = 1 if isinstance(low, int) else 1e-3
    Sampler(**{name: low})
    Sampler(**{name: high})
    for value in (low - step, high + step):
        with pytest.raises(BadRequest) as error:
            Sampler(**{name: value})
        assert error.value.code == f"request.{name}"
