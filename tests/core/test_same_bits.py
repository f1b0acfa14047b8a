"""The same bits (docs/architecture.md): a row follows from the rows before it and their forms, and from nothing else.

Random conversations are computed twice: cold, in one call on a new session, and the way a live session meets them:
turn by turn, in random cuts and chunks, beside neighbours, answers token by token or several at once, rewound and
extended again. Every turn's logits must agree to the last bit. KIMI_HISTORIES sets how many conversations
each case draws (default 1).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from engine_support import open_engine
from hypothesis import given
from hypothesis import strategies as st
from kernel_support import every_isa_of
from vectors import assert_same_bits

from kimi_vl_cpp import BadRequest, KimiVL
from kimi_vl_cpp._core import PAGE_POSITIONS, GGUFFile, Session
from kimi_vl_cpp.cache.keys import Picture, expanded_positions
from kimi_vl_cpp.generation.request import answer_positions, placed
from kimi_vl_cpp.testing import ROWS_OF_256
from kimi_vl_cpp.text.chat_template import write_prompt
from kimi_vl_cpp.text.tokenizer import Tokenizer

HISTORIES = int(os.environ.get("KIMI_HISTORIES", "1"))
CASES = [
    (text_type, kv_type, activations)
    for text_type in ("Q4_K_M", "Q8_0")
    for kv_type in ("f16", "q8_0", "f32")
    for activations in ("int8", "float")
] + [(text_type, kv_type, "int8") for text_type in ("F32", "F16") for kv_type in ("f16", "q8_0", "f32")]
BORDERS = (126, 127, 128, 129, 130, 255, 256, 257, 511, 512, 513)


def forms_of(roles: str) -> np.ndarray:
    """The page rule: a position is expanded when its page is whole and holds no position of an answer."""
    expanded = np.zeros(len(roles), dtype=bool)
    for page in range(len(roles) // PAGE_POSITIONS):
        rows = slice(page * PAGE_POSITIONS, (page + 1) * PAGE_POSITIONS)
        expanded[rows] = "a" not in roles[rows]
    return expanded


class History:
    """A conversation: token ids or picture embeddings, the role of every position (p or a), and where its turns end."""

    def __init__(self, model, rng: np.random.Generator, n_max: int = 800) -> None:
        self.rows: list[int | np.ndarray] = []
        self.roles, self.turns = "", []
        while len(self.rows) < n_max - 300 and len(self.turns) < 5:
            self._add(
                model, rng, "p", int(rng.choice([rng.integers(1, 300), rng.choice(BORDERS) - len(self.rows) % 128]))
            )
            self.turns.append(len(self.rows))
            self._add(model, rng, "a", int(rng.integers(1, 150)))
            self.turns.append(len(self.rows))

    def _add(self, model, rng, role: str, n: int) -> None:
        n = max(1, n)
        if role == "p" and rng.random() < 0.3:
            self.rows += list(rng.standard_normal((n, model.config["text"]["hidden_size"]), dtype=np.float32))
        else:
            self.rows += [int(token) for token in rng.integers(0, model.n_vocab, n)]
        self.roles += role * n

    def parts(self, first: int, end: int) -> list[np.ndarray]:
        parts: list[list] = []
        for row in self.rows[first:end]:
            if not parts or isinstance(parts[-1][0], int) != isinstance(row, int):
                parts.append([])
            parts[-1].append(row)
        return [np.array(part, np.int32 if isinstance(part[0], int) else np.float32) for part in parts]


def cold(engine, history: History, end: int, kv_type: str) -> np.ndarray:
    session = Session(engine, end, kv_type)
    return session.prefill(history.parts(0, end), expanded=forms_of(history.roles[:end]))


class Live:
    """A session that grows as sessions do, and a neighbour that is computed beside it."""

    def __init__(self, engine, model, kv_type: str, rng: np.random.Generator) -> None:
        self.engine, self.model, self.rng, self.kv_type = engine, model, rng, kv_type
        self.session = Session(engine, 2000, kv_type)
        self.neighbour = Session(engine, 4000, kv_type)
        self.forms = np.zeros(0, dtype=bool)

    def extend(self, history: History, end: int) -> np.ndarray:
        """Up to position `end`, from what of it is held in the same forms."""
        forms = forms_of(history.roles[:end])
        held = min(self.session.n_past, end - 1)
        differs = np.flatnonzero(self.forms[:held] != forms[:held])
        kept = int(differs[0]) if len(differs) else held
        if kept and self.rng.random() < 0.3:
            kept = int(self.rng.integers(0, kept))  # evicted, cancelled or asked again
        self.session.truncate(kept)
        while kept < end:
            n = min(end - kept, int(self.rng.choice([1, 2, 3, 5, 17, 64, 128, 200, 1000])))
            if "p" not in history.roles[kept : kept + n] and n < 4:
                for row in history.rows[kept : kept + n]:
                    self.session.decode(row)
            elif n <= 8 and len(history.parts(kept, kept + n)) == 1:
                self._beside(history.parts(kept, kept + n)[0], forms[kept : kept + n])
            else:
                chunk = int(self.rng.choice([0, 1, 7, 128, 300])) if n < 130 else int(self.rng.choice([0, 128, 300]))
                self.session.prefill(history.parts(kept, kept + n), expanded=forms[kept : kept + n], chunk=chunk)
            kept += n
        self.forms = forms
        return np.array(self.session.logits)

    def _beside(self, part: np.ndarray, expanded: np.ndarray) -> None:
        n = int(self.rng.choice([1, 2, 4, 130]))
        if self.neighbour.n_past + n > self.neighbour.n_ctx:
            self.neighbour.truncate(0)
        other = (self.neighbour, self.rng.integers(0, self.model.n_vocab, n).astype(np.int32), "last")
        mine = (self.session, part, "last")
        if self.rng.random() < 0.5:
            self.engine.step([mine, other], expanded=[expanded, None])
        else:
            self.engine.step([other, mine], expanded=[None, expanded])


def check(model, engine, kv_type: str, seed: int, n_max: int = 800) -> None:
    rng = np.random.default_rng(seed)
    history = History(model, rng, n_max)
    live = Live(engine, model, kv_type, rng)
    for end in history.turns:
        got, want = live.extend(history, end), cold(engine, history, end, kv_type)
        assert_same_bits(got, want, f"history {seed}, turns {history.turns}, up to {end}")


@every_isa_of("text_type, kv_type, activations", CASES)
def test_a_live_session_has_the_bits_of_a_cold_one(tiny_model, isa, text_type, kv_type, activations):
    model = tiny_model(seed=3, text_type=text_type, **ROWS_OF_256)
    engine = open_engine(model, isa, activations=activations)
    for seed in range(HISTORIES):
        check(model, engine, kv_type, seed)


@pytest.mark.parametrize("heads", [1, 3, 16, 17, 40])
@every_isa_of("text_type, kv_type", [("Q8_0", "f16"), ("Q8_0", "q8_0"), ("Q8_0", "f32")])
def test_any_number_of_heads_has_the_bits_of_a_cold_session(tiny_model, isa, heads, text_type, kv_type):
    """Tiles hold several tokens, one token, or a part of one."""
    model = tiny_model(seed=4, text_type=text_type, **{**ROWS_OF_256, "num_attention_heads": heads})
    engine = open_engine(model, isa)
    for seed in range(100, 100 + max(1, HISTORIES // 3)):
        check(model, engine, kv_type, seed, n_max=800 if HISTORIES > 1 else 500)


@every_isa_of("text_type, kv_type", [("Q4_K_M", "f16"), ("Q4_K_M", "q8_0"), ("Q4_K_M", "f32")])
@pytest.mark.parametrize("n_drafted", [2, 3, 4, 5, 8, 16])
def test_drafted_tokens_verified_together_have_the_bits_of_decoding(tiny_model, isa, text_type, kv_type, n_drafted):
    """Also where the number of keys crosses a multiple of 512, from which on they are split otherwise."""
    model = tiny_model(seed=3, text_type=text_type, **{**ROWS_OF_256, "num_attention_heads": 16})
    engine = open_engine(model, isa)
    ids = model.random_ids(1100)
    for start in (40, 505, 1015):
        session = Session(engine, 1200, kv_type)
        session.prefill([ids[:start]], logits="none")
        alone = []
        for token in ids[start : start + n_drafted]:
            session.decode(int(token))
            alone.append(session.logits)
        session.truncate(start)
        drafted = ids[start : start + n_drafted]
        together = session.prefill([drafted], logits="all", expanded=np.zeros(n_drafted, dtype=bool))
        assert_same_bits(together, np.stack(alone), f"after {start}")


@pytest.mark.parametrize("text_type", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("n", [1, 3, 128, 200, 256])
def test_the_last_logits_alone_have_the_bits_of_all(tiny_model, isa, text_type, n):
    model = tiny_model(text_type=text_type, **ROWS_OF_256)
    engine = open_engine(model, isa)
    ids = model.random_ids(n)
    last, whole = Session(engine, n).prefill([ids], logits="last"), Session(engine, n).prefill([ids], logits="all")
    assert_same_bits(last, whole[-1])


def test_the_default_forms_are_those_of_a_prompt(tiny_model):
    model = tiny_model(text_type="Q8_0", **ROWS_OF_256)
    engine = open_engine(model)
    ids = model.random_ids(300)
    explicit = Session(engine, 300).prefill([ids], expanded=forms_of("p" * 300))
    assert_same_bits(Session(engine, 300).prefill([ids]), explicit)
    other = Session(engine, 300).prefill([ids], expanded=np.zeros(300, dtype=bool))
    assert not np.array_equal(explicit, other)  # else no test here could see a wrong form


def ask(model, rng: np.random.Generator, messages: list[dict], pictures: list) -> tuple:
    """The next answer to a conversation, sampled, with a seed that the conversation decides."""
    return model.start(
        messages, pictures, temperature=1.0, top_p=0.95, seed=len(messages), max_new_tokens=int(rng.integers(1, 90))
    ).drain()


@every_isa_of(
    "text_type, kv_type, activations",
    [(*types, how) for types in [("Q4_K_M", "f16"), ("Q8_0", "q8_0"), ("F32", "f32")] for how in ("int8", "float")],
)
def test_sampled_answers_are_those_of_a_fresh_model(tiny_model, isa, text_type, kv_type, activations):
    """Through the whole library: conversations whose turns are asked of a model that has held other prompts, branches
    of the same conversation and the same turns before, and of a model that has held nothing."""
    tiny = tiny_model(seed=6, text_type=text_type, vision_type="Q8_0", **ROWS_OF_256)
    options = {"isa": isa, "kv_type": kv_type, "activations": activations, "n_ctx": 2048, "n_threads": 2}
    words = "what is in this picture and how many of them are red or blue".split()
    for seed in range(max(1, HISTORIES // 2)):
        rng = np.random.default_rng(1000 + seed)
        pictures = [tiny.random_picture(int(h) * 28, int(w) * 28, seed=seed) for h, w in rng.integers(1, 9, (2, 2))]
        messages: list[dict] = []
        with KimiVL(tiny.text, **options) as model:
            for turn in range(3):
                text = " ".join(rng.choice(words, int(rng.integers(1, 120))))
                content: list[dict] = [{"type": "text", "text": text}]
                if turn < 2:
                    content.insert(0, {"type": "image", "image": turn})
                messages.append({"role": "user", "content": content})
                if rng.random() < 0.5:  # another branch in between
                    ask(model, rng, [*messages[:-1], {"role": "user", "content": text[::-1]}], pictures[:turn])
                state = rng.bit_generator.state
                used = pictures[: min(turn + 1, 2)]
                warm = ask(model, rng, messages, used)
                rng.bit_generator.state = state
                with KimiVL(tiny.text, **options) as fresh:
                    cold = ask(fresh, rng, messages, used)
                assert cold.usage.cached_tokens == 0
                assert warm.token_ids == cold.token_ids, f"seed {seed}, turn {turn}, {warm.usage}"
                messages.append({"role": "assistant", "content": warm.text})


@given(st.text(alphabet="pa", max_size=700))
def test_the_page_rule_agrees_with_its_definition(roles):
    assert np.array_equal(expanded_positions(np.array([role == "a" for role in roles], bool)), forms_of(roles))


@given(st.integers(1, 600), st.integers(1, 300), st.integers(0, 300))
def test_an_answer_changes_the_form_of_no_position_before_it(n_prompt, n_answer, n_more):
    before, after = forms_of("p" * n_prompt), forms_of("p" * n_prompt + "a" * n_answer + "p" * n_more)
    assert np.array_equal(before, after[:n_prompt])
    assert not after[n_prompt : n_prompt + n_answer].any()


def test_the_contents_of_answers_are_answer_positions(tiny_model):
    tokenizer = Tokenizer.from_gguf(GGUFFile(str(tiny_model().text)), vision=True)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": 0}]},
        {"role": "assistant", "content": "<|im_end|> two words"},
        {"role": "user", "content": "assistant"},
    ]
    prompt = write_prompt(tokenizer, messages)
    items = placed(prompt.parts, [Picture("x", 7)])
    flags = answer_positions(items, prompt.messages)
    content = tokenizer.encode("<|im_end|> two words")
    tokens = [token for item in items for token in ([-1] * 7 if isinstance(item, Picture) else [item])]
    assert [token for token, flag in zip(tokens, flags, strict=True) if flag] == content


def test_forms_of_another_length_are_refused(tiny_model):
    engine = open_engine(tiny_model())
    session = Session(engine, 10)
    with pytest.raises(BadRequest, match="forms of 3 rows were given for 2 new tokens"):
        session.prefill([np.array([1, 2], np.int32)], expanded=np.zeros(3, dtype=bool))
    assert session.n_past == 0
