"""The tokenizer: the reference's ids, hostile vocabularies, hostile texts, decoding id by id."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    CHAT_NAMES,
    CONTROL,
    MERGED,
    NORMAL,
    REFERENCE,
    UNUSED,
    USER_DEFINED,
    FakeGGUF,
    bpe_metadata,
    small_bpe,
    small_spm,
    small_tokens,
    specials,
    spelled,
    with_merges,
)

from kimi_vl_cpp.bpe import MAX_CHUNK_CHARS, MAX_RUN_CHARS, PATTERN, cut_long_text
from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError, Unsupported
from kimi_vl_cpp.tokenizer import Tokenizer

TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
MERGES = "tokenizer.ggml.merges"
BOS = "tokenizer.ggml.bos_token_id"
EOS = "tokenizer.ggml.eos_token_id"

BASE = len(small_tokens())


def load(metadata, **options):
    return Tokenizer.from_gguf(FakeGGUF(metadata), **options)


BPE = load(small_bpe(), vision=True)
SPM = load(small_spm(), vision=True)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])


def changed(metadata, **changes):
    """The metadata with keys replaced (None: removed); "tokens_5" and the like replace one entry of a list."""
    metadata = {key: list(value) if isinstance(value, list) else value for key, value in metadata.items()}
    for name, value in changes.items():
        field, _, index = name.rpartition("_")
        if index.lstrip("m").isdigit():
            metadata[f"tokenizer.ggml.{field}"][-int(index[1:]) if index[0] == "m" else int(index)] = value
        elif value is None:
            del metadata[f"tokenizer.ggml.{name}"]
        else:
            metadata[f"tokenizer.ggml.{name}"] = value
    return metadata


# ---------------------------------------------------------------------------------------------------------------------
# The reference


@pytest.mark.skipif(not (REFERENCE / "tok-cases.json").exists(), reason="reference vectors are not here")
def test_reference_cases_without_a_difference():
    cases = json.loads((REFERENCE / "tok-cases.json").read_text())
    lines = (REFERENCE / "tok-tiktoken.model").read_text().splitlines()
    ranks = {int(rank): base64.b64decode(token) for token, rank in map(str.split, lines)}
    tokenizer = load(bpe_metadata([ranks[index] for index in range(len(ranks))]), vision=True)
    assert cases["pattern"] == PATTERN
    assert len(cases["cases"]) > 50
    for case in cases["cases"]:
        # The vectors were made with special tokens on; for a text that spells none it makes no difference.
        assert tokenizer.encode(case["text"], special=True) == case["ids"], case["text"]
        if not any(name in case["text"] for name in tokenizer.special):
            assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


PIECES = [
    ["Hello", " world"],
    ["Hello", "World", " get", "URLFor", " i", "Phone"],
    ["ABCdef", "GHI"],
    ["don't", " I'LL", " we've"],
    ["O'Re", "illy's"],
    ["中文", "abc", "测试", " ", "中文"],
    ["日本語", "カナ한국어"],
    ["Hello", "，", "世界", "！"],
    ["、", "々〇"],
    ["123", "456", "7", " ", "3", ".", "14"],
    ["a", " ", " b", "\n\n", " ", " c", "\t", "\td"],
    ["foo", "(bar", ")\n\n", "x"],
    ["https", "://", "a", ".b", "/c", "?d", "=", "1"],
    ["cafe\u0301", " e\u0301t\u0301e"],
    ["🙂🙂", " hi"],
    ["trailing", "  "],
    ["Aʰ", "B"],  # the upper-case run gives the modifier letter back, or this would be one piece
    ["ʰAbʰ"],
]


@pytest.mark.parametrize("pieces", PIECES, ids=["".join(pieces) for pieces in PIECES])
def test_text_is_cut_where_the_model_family_cuts_it(pieces):
    # Every expected piece is a token of its own, so a right cut gives exactly these tokens.
    extra = dict.fromkeys(piece.encode() for row in PIECES for piece in row if len(piece.encode()) > 1)
    tokenizer = load(bpe_metadata([bytes([byte]) for byte in range(256)] + list(extra)))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("".join(pieces))] == pieces


def test_merging_follows_ranks_where_the_list_of_merges_says_otherwise():
    # "abc" is ab + c by rank; the merges list, in another order, says a + bc. Both orders are in the file.
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc", b"xabc"]
    merges = [spelled(pair) for pair in (b"b",)] and [b"b c", b"a b"]
    tokenizer = load(with_merges(bpe_metadata(tokens), merges))
    assert tokenizer.decode([tokenizer.encode("abc")[0]]) == "ab"


# ---------------------------------------------------------------------------------------------------------------------
# Vocabularies that must be refused, or accepted

BAD_BPE = {
    "no tokenizer model": (dict(model=None), "tokenizer.model", "tokenizer.ggml.model"),
    "tokenizer model of another type": (dict(model=7), "tokenizer.key_type", "tokenizer.ggml.model"),
    "no tokens": (dict(tokens=None), "tokenizer.tokens", TOKENS),
    "empty list of tokens": (dict(tokens=[]), "tokenizer.tokens", TOKENS),
    "tokens are numbers": (dict(tokens=[1, 2, 3]), "tokenizer.key_type", TOKENS),
    "tokens are one string": (dict(tokens="abc"), "tokenizer.key_type", TOKENS),
    "an empty token": (dict(tokens_260=b""), "tokenizer.empty_token", f"{TOKENS}[260]"),
    "an empty special token": (dict(tokens_m3=b""), "tokenizer.empty_token", f"{TOKENS}[{BASE + 253}]"),
    "two normal tokens the same": (dict(tokens_260=spelled(b"in")), "tokenizer.duplicate_token", f"{TOKENS}[260]"),
    "two special tokens the same": (dict(tokens_m3=b"[EOS]"), "tokenizer.duplicate_token", "[EOS]"),
    "a special token like a normal one": (dict(tokens_m1=b"in"), "tokenizer.duplicate_token", "token 257"),
    "a normal token is not UTF-8": (dict(tokens_257=b"\xff\xfe"), "tokenizer.not_utf8", f"{TOKENS}[257]"),
    "a token is half a character": (dict(tokens_257=b"\xc4"), "tokenizer.not_utf8", f"{TOKENS}[257]"),
    "a special token is not UTF-8": (dict(tokens_m3=b"\xff"), "tokenizer.not_utf8", f"{TOKENS}[{BASE + 253}]"),
    "a token is not in byte spelling": (dict(tokens_257="中".encode()), "tokenizer.byte_spelling", "'中'"),
    "a token holds a newline": (dict(tokens_257=b"a\nb"), "tokenizer.byte_spelling", f"{TOKENS}[257]"),
    "a token holds the separator": (dict(tokens_257="\u0400".encode()), "tokenizer.byte_spelling", f"{TOKENS}[257]"),
    "a token holds a NUL": (dict(tokens_257=b"\0"), "tokenizer.byte_spelling", f"{TOKENS}[257]"),
    "one token too few": (dict(tokens=small_bpe()[TOKENS][:-1]), "tokenizer.length", "vocab_size"),
    "one token too many": (dict(tokens=[*small_bpe()[TOKENS], b"x y"]), "tokenizer.length", "vocab_size"),
    "no types": (dict(token_type=None), "tokenizer.token_type", TYPES),
    "types one short": (dict(token_type=small_bpe()[TYPES][:-1]), "tokenizer.length", TYPES),
    "types one long": (dict(token_type=[*small_bpe()[TYPES], 1]), "tokenizer.length", TYPES),
    "types are strings": (dict(token_type=[b"1"]), "tokenizer.key_type", TYPES),
    "types are floats": (dict(token_type=[1.0] * (BASE + 256)), "tokenizer.key_type", TYPES),
    "types are bools": (dict(token_type=[True] * (BASE + 256)), "tokenizer.key_type", TYPES),
    "types are one number": (dict(token_type=1), "tokenizer.key_type", TYPES),
    "type 0": (dict(token_type_7=0), "tokenizer.token_type", f"{TYPES}[7]"),
    "type 99": (dict(token_type_7=99), "tokenizer.token_type", f"{TYPES}[7]"),
    "type -1": (dict(token_type_7=-1), "tokenizer.token_type", f"{TYPES}[7]"),
    "byte type in byte-level BPE": (dict(token_type_7=6), "tokenizer.token_type", f"{TYPES}[7]"),
    "no token for byte 0xFF": (
        {f"tokens_{small_tokens().index(bytes([0xFF]))}": b"zzz"},
        "tokenizer.missing_byte",
        "0xFF",
    ),
    "a single byte is unused": (
        {f"token_type_{small_tokens().index(b' ')}": UNUSED},
        "tokenizer.missing_byte",
        "0x20",
    ),
    "all tokens control": (dict(token_type=[CONTROL] * (BASE + 256)), "tokenizer.missing_byte", "256 of the 256"),
    "no token control": (dict(token_type=[NORMAL] * (BASE + 256)), "tokenizer.missing_special", "<|im_end|>"),
    "merge without space": (dict(merges=[b"in", b"h e"]), "tokenizer.merges", f"{MERGES}[0]"),
    "merge with two spaces": (dict(merges=[b"h e", b"i n t"]), "tokenizer.merges", f"{MERGES}[1]"),
    "merge that is empty": (dict(merges=[b""]), "tokenizer.merges", f"{MERGES}[0]"),
    "merge with an empty half": (dict(merges=[b"h e", b" n"]), "tokenizer.merges", f"{MERGES}[1]"),
    "merge of an unknown token": (dict(merges=[b"h e", b"qqq n"]), "tokenizer.merges", "'qqq'"),
    "merge whose result is no token": (dict(merges=[b"q q"]), "tokenizer.merges", "'qq'"),
    "merges are numbers": (dict(merges=[1]), "tokenizer.key_type", MERGES),
    "bos out of range": (dict(bos_token_id=BASE + 256), "tokenizer.id_range", BOS),
    "eos out of range": (dict(eos_token_id=2**32 - 1), "tokenizer.id_range", EOS),
    "eos negative": (dict(eos_token_id=-1), "tokenizer.id_range", EOS),
    "eos is a string": (dict(eos_token_id="[EOS]"), "tokenizer.id_range", EOS),
    "eos is a bool": (dict(eos_token_id=True), "tokenizer.id_range", EOS),
    "eos is the comma": (dict(eos_token_id=11), "tokenizer.id_not_special", EOS),
    "bos is the comma": (dict(bos_token_id=11), "tokenizer.id_not_special", BOS),
}


@pytest.mark.parametrize("case", BAD_BPE)
def test_byte_level_vocabulary_refused(case):
    changes, code, word = BAD_BPE[case]
    started = time.process_time()
    with pytest.raises(BadModelFile) as caught:
        load(changed(small_bpe(), **changes))
    assert caught.value.code == code
    assert word in str(caught.value)
    assert str(caught.value).startswith("fake.gguf: tokenizer.ggml.")
    assert "convert" in str(caught.value)  # what to do
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", [*(name for name in CHAT_NAMES if "media" not in name), "[EOS]"])
def test_missing_chat_token_is_an_error_by_name(name):
    metadata = small_bpe()
    index = metadata[TOKENS].index(name.encode())
    with pytest.raises(BadModelFile, match="is missing: no token has that text") as caught:
        load(changed(metadata, **{f"tokens_{index}": b"<|other|>"}))
    assert caught.value.code == "tokenizer.missing_special" and repr(name) in str(caught.value)


def test_chat_token_of_normal_type_is_an_error_that_names_the_type():
    index = small_bpe()[TOKENS].index(b"<|im_end|>")
    with pytest.raises(BadModelFile, match=rf"token_type\[{index}\] of that text is 1, expected 3"):
        load(changed(small_bpe(), **{f"token_type_{index}": NORMAL}))


@pytest.mark.parametrize("name", [name for name in CHAT_NAMES if "media" in name])
def test_media_tokens_are_needed_only_by_a_model_that_sees(name):
    index = small_bpe()[TOKENS].index(name.encode())
    metadata = changed(small_bpe(), **{f"tokens_{index}": b"<|other|>"})
    with pytest.raises(BadModelFile) as caught:
        load(metadata, vision=True)
    assert caught.value.code == "tokenizer.missing_special" and repr(name) in str(caught.value)
    tokenizer = load(metadata)
    with pytest.raises(BadModelFile):
        getattr(tokenizer, name.strip("<|>") + "_id")


def test_media_ids_are_those_of_the_list():
    assert BPE.media_start_id == BASE + 18 and BPE.media_content_id == BASE + 19
    assert BPE.media_end_id == BASE + 20 and BPE.media_pad_id == BASE + 21


def test_absent_bos_and_eos_keys_are_found_by_name():
    tokenizer = load(changed(small_bpe(), bos_token_id=None, eos_token_id=None))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (BASE, BASE + 1)
    assert tokenizer.stop_ids == {BASE + 1, BASE + 2}


def test_stop_ids_hold_the_end_of_turn_the_named_eos_and_the_key():
    assert load(changed(small_bpe(), eos_token_id=BASE + 9)).stop_ids == {BASE + 1, BASE + 2, BASE + 9}


def test_missing_bos_is_an_error_only_without_its_key():
    metadata = changed(small_bpe(), **{f"tokens_{BASE}": b"<|other|>"})
    assert load(metadata).bos_id == BASE
    with pytest.raises(BadModelFile, match=r"\[BOS\]"):
        load(changed(metadata, bos_token_id=None))


@pytest.mark.parametrize("merges", [None, [], [b"i n", b"h e", "Ġ t".encode()]], ids=["absent", "empty", "some"])
def test_merges_may_be_absent_since_ids_are_ranks(merges):
    metadata = small_bpe() if merges is None else with_merges(small_bpe(), merges)
    assert load(metadata).encode("in the") == BPE.encode("in the")


@pytest.mark.parametrize("pre", ["kimi-k2", "default", None])
def test_pre_of_older_converters_is_accepted(pre):
    assert load(changed(small_bpe(), pre=pre)).encode("in the") == BPE.encode("in the")


def test_another_kind_of_tokenizer_is_unsupported_by_name():
    for changes, code in ((dict(model="bert"), "tokenizer.model"), (dict(pre="llama-bpe"), "tokenizer.pre")):
        with pytest.raises(Unsupported, match=f"tokenizer.ggml.{next(iter(changes))}") as caught:
            load(changed(small_bpe(), **changes))
        assert caught.value.code == code


def test_vocabulary_and_embedding_table_must_agree():
    class Table:
        name = "token_embd.weight"
        shape = (BASE + 255, 64)

    gguf = FakeGGUF(small_bpe())
    gguf.tensors = [Table]
    with pytest.raises(BadModelFile, match=r"token_embd\.weight has the shape") as caught:
        Tokenizer.from_gguf(gguf)
    assert caught.value.code == "tokenizer.length"
    Table.shape = (BASE + 256, 64)
    Tokenizer.from_gguf(gguf)


def test_unused_ids_between_normal_ones_are_never_encoded_and_decode_to_nothing():
    index = BASE - len(MERGED) + MERGED.index(b"in")
    tokenizer = load(changed(small_bpe(), **{f"tokens_{index}": b"[PAD 257]", f"token_type_{index}": UNUSED}))
    assert tokenizer.decode(tokenizer.encode("in")) == "in"
    assert index not in tokenizer.encode("in [PAD 257]", special=True)
    assert tokenizer.decode([index]) == ""


def test_user_defined_tokens_are_special():
    metadata = changed(small_bpe(), token_type=[NORMAL] * BASE + [USER_DEFINED] * 256)
    tokenizer = load(metadata, vision=True)
    assert tokenizer.special == BPE.special
    assert tokenizer.encode("<|im_end|>") == BPE.encode("<|im_end|>")


def test_real_size_vocabulary_loads_and_refuses_within_a_second():
    # 163,584 normal tokens of up to 3 bytes; the bar is 1 s, it takes about 0.3 s of a slow core.
    tokens = [bytes([byte]) for byte in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    tokens += [bytes([97, a, b]) for a in range(256) for b in range(256)]
    tokens += [bytes([98, a, b]) for a in range(256) for b in range(256)]
    metadata = bpe_metadata(tokens[:163_584])
    metadata[MERGES] = [spelled(t[:-1]) + b" " + spelled(t[-1:]) for t in tokens[256:163_584]]
    started = time.process_time()
    tokenizer = load(metadata)
    loaded = time.process_time()
    assert tokenizer.n_vocab == 163_840
    assert loaded - started < 1
    for change, code in ((dict(tokens_163500=b"a"), "duplicate_token"), (dict(merges_163000=b"a"), "merges")):
        broken = changed(metadata, **change)
        started = time.process_time()
        with pytest.raises(BadModelFile) as caught:
            load(broken)
        assert caught.value.code == f"tokenizer.{code}"
        assert time.process_time() - started < 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damaged_vocabulary_raises_anything_but_our_errors(data):
    metadata = data.draw(st.sampled_from([small_bpe(), small_spm()]))
    texts = st.one_of(st.binary(max_size=4), st.sampled_from([b"[EOS]", b"<unk>", b"<0x00>", b"\xe2\x96\x81", b"a"]))
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from([key for key, value in metadata.items() if isinstance(value, list)]))
        index = data.draw(st.integers(0, len(metadata[key]) - 1))
        values = {TOKENS: texts, TYPES: st.integers(0, 7), SCORES: st.floats(width=32)}[key]
        metadata[key][index] = data.draw(values)
    try:
        tokenizer = load(metadata)
    except KimiVLError as error:
        assert error.code.startswith("tokenizer.")
        return
    tokenizer.decode(tokenizer.encode("the user \x00 in 中文 <|im_end|>"))


# ---------------------------------------------------------------------------------------------------------------------
# SentencePiece vocabularies

FIRST_WORD = small_spm()[TOKENS].index("▁t".encode())

BAD_SPM = {
    "no scores": (dict(scores=None), "tokenizer.scores", SCORES),
    "scores one short": (dict(scores=small_spm()[SCORES][:-1]), "tokenizer.length", SCORES),
    "scores are integers": (dict(scores=[0] * len(small_spm()[SCORES])), "tokenizer.key_type", SCORES),
    "scores are strings": (dict(scores=[b"0"]), "tokenizer.key_type", SCORES),
    "a score is NaN": (dict(scores_300=float("nan")), "tokenizer.scores", f"{SCORES}[300]"),
    "a score is infinite": (dict(scores_300=float("-inf")), "tokenizer.scores", f"{SCORES}[300]"),
    "types short": (dict(token_type=small_spm()[TYPES][:-1]), "tokenizer.length", TYPES),
    "type 7": (dict(token_type_3=7), "tokenizer.token_type", f"{TYPES}[3]"),
    "no unknown token": (dict(token_type_0=NORMAL), "tokenizer.unknown_token", "0 unknown"),
    "two unknown tokens": (dict(token_type_1=2), "tokenizer.unknown_token", "2 unknown"),
    "a byte token missing": (dict(token_type_20=NORMAL), "tokenizer.missing_byte", "255 byte tokens"),
    "a byte token that is none": (dict(token_type_300=6), "tokenizer.byte_token", f"{TOKENS}[300]"),
    "a piece is not UTF-8": (dict(tokens_300=b"\xff"), "tokenizer.not_utf8", f"{TOKENS}[300]"),
    "a piece is empty": (dict(tokens_300=b""), "tokenizer.empty_token", f"{TOKENS}[300]"),
    "a piece holds a NUL": (dict(tokens_300=b"a\0b"), "tokenizer.nul", f"{TOKENS}[300]"),
    "two pieces the same": (dict(tokens_300=b"he"), "tokenizer.duplicate_token", "'he'"),
    "a chat token missing": (dict(tokens_3=b"<|other|>"), "tokenizer.missing_special", CHAT_NAMES[0]),
    "eos out of range": (dict(eos_token_id=10**6), "tokenizer.id_range", EOS),
    "eos is a word": (dict(eos_token_id=FIRST_WORD), "tokenizer.id_not_special", EOS),
    "space prefix is a number": (dict(add_space_prefix=1), "tokenizer.key_type", "add_space_prefix"),
}


@pytest.mark.parametrize("case", BAD_SPM)
def test_sentencepiece_vocabulary_refused(case):
    changes, code, word = BAD_SPM[case]
    with pytest.raises(BadModelFile) as caught:
        load(changed(small_spm(), **changes))
    assert caught.value.code == code
    assert word in str(caught.value)
    assert str(caught.value).startswith("fake.gguf: tokenizer.ggml.")


def test_sentencepiece_with_a_character_map_is_unsupported_by_name():
    with pytest.raises(Unsupported, match="precompiled_charsmap") as caught:
        load({**small_spm(), "tokenizer.ggml.precompiled_charsmap": [0, 1]})
    assert caught.value.code == "tokenizer.charsmap"


def test_sentencepiece_vocabulary_without_words_spells_bytes():
    metadata = small_spm()
    metadata[TYPES] = [CONTROL if kind == NORMAL else kind for kind in metadata[TYPES]]
    tokenizer = load({**metadata, "tokenizer.ggml.add_space_prefix": False})
    assert {metadata[TYPES][token] for token in tokenizer.encode("the\nuser")} == {6}
    assert tokenizer.decode(tokenizer.encode("the\nuser")) == "the\nuser"


def test_a_token_of_a_mebibyte_is_a_token_or_refused():
    long = "a" * 2**20
    tokenizer = load(changed(small_bpe(), tokens_260=long.encode()))
    assert tokenizer.decode([260]) == long
    with pytest.raises(BadModelFile, match="too long") as caught:  # the library's own limit
        load(changed(small_spm(), **{f"tokens_{FIRST_WORD}": long.encode()}))
    assert caught.value.code == "tokenizer.sentencepiece"


def train_sentencepiece(**options):
    import io

    import sentencepiece

    model = io.BytesIO()
    words = (
        "the user asks what the picture shows; the answer names a cat, 中文 and café. user image system 12 345 <|x|>"
    )
    lines = [" ".join(words.split()[i % 9 :]) for i in range(60)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=380, byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("prefix", [True, False], ids=["space prefix", "no prefix"])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece_from_gguf_equals_the_model_it_was_made_of(model_type, prefix):
    names = [*CHAT_NAMES, "[EOS]", "[BOS]"]
    original = train_sentencepiece(model_type=model_type, control_symbols=names, add_dummy_prefix=prefix)
    ids = range(original.get_piece_size())
    kinds = {original.is_unknown: 2, original.is_control: 3, original.is_unused: 5, original.is_byte: 6}
    metadata = {
        "tokenizer.ggml.model": "llama",
        TOKENS: [original.id_to_piece(i).encode() for i in ids],
        SCORES: [original.get_score(i) for i in ids],
        TYPES: [next((kind for test, kind in kinds.items() if test(i)), 1) for i in ids],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tokenizer = load(metadata, vision=True)
    texts = [
        "",
        " ",
        "the user",
        "  two  spaces ",
        "中文 café 12345",
        "a\nb\tc\0d",
        "😀 unseen ß",
        "<|im_end|>",
        " the",
    ]
    for text in texts:
        assert tokenizer.encode(text) == original.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text)) == text
    for first in ids:
        several = [first, (first * 7) % len(ids), (first * 13) % len(ids)]
        if "\ufffd" not in original.decode(several):  # the library spells broken bytes out one by one
            assert tokenizer.decode(several) == original.decode(several), several


def test_sentencepiece_user_defined_tokens_are_never_found_in_text():
    metadata = small_spm()
    types = [USER_DEFINED if kind == CONTROL else kind for kind in metadata[TYPES]]
    tokenizer = load({**metadata, TYPES: types})
    assert tokenizer.encode("a<|im_end|>b") == SPM.encode("a<|im_end|>b")
    assert tokenizer.im_end_id not in tokenizer.encode("a<|im_end|>b")


def test_sentencepiece_without_byte_tokens_says_unknown():
    metadata = small_spm()
    keep = [i for i, kind in enumerate(metadata[TYPES]) if kind != 6]
    tokenizer = load({**metadata, **{key: [metadata[key][i] for i in keep] for key in (TOKENS, TYPES, SCORES)}})
    assert tokenizer.decode(tokenizer.encode("the ☃ user")) == "the  \u2047  user"


# ---------------------------------------------------------------------------------------------------------------------
# Texts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SPICY = st.lists(
    st.one_of(
        st.sampled_from(
            ["<|im_end|>", "<|im_", "[EOS]", "\0", "\r\n", "  ", " ", "é", "e\u0301", "👨‍👩‍👧", "中文", "'ll"]
        ),
        TEXT,
    ),
    max_size=8,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEXT, SPICY))
def test_decode_of_encode_is_the_text(text):
    assert BPE.decode(BPE.encode(text)) == text
    assert BPE.decode(BPE.encode(text, special=True), special=True) == text


@settings(max_examples=200, deadline=None)
@given(st.one_of(TEXT, SPICY).filter(lambda text: "\u2581" not in text))
def test_decode_of_encode_is_the_text_for_sentencepiece(text):
    # U+2581 is how SentencePiece writes a space inside its pieces; in a text it is read as one.
    assert SPM.decode(SPM.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.one_of(TEXT, SPICY))
def test_no_text_encodes_to_a_special_token(text):
    for tokenizer in (BPE, SPM):
        assert not set(tokenizer.encode(text)) & set(tokenizer.special.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, BASE + 255), max_size=40))
def test_encoding_what_was_decoded_is_stable(ids):
    text = BPE.decode(ids)
    again = BPE.encode(text)
    assert BPE.decode(again) == text
    assert BPE.encode(BPE.decode(again)) == again


@BOTH
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_streamed_pieces_joined_are_the_one_shot_text(tokenizer, data):
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=40),
            st.one_of(TEXT, SPICY).map(tokenizer.encode),
        )
    )
    special = data.draw(st.booleans())
    whole = tokenizer.decode(ids, special=special)
    stream = tokenizer.stream(special=special)
    given_out = ""
    for token in ids:
        given_out += stream.push(token)
        assert whole.startswith(given_out)  # so no U+FFFD that the one-shot text has not
    assert given_out + stream.flush() == whole
    assert stream.flush() == ""


def test_stream_gives_no_half_character():
    ids = BPE.encode("a😀é中!")
    stream = BPE.stream()
    pieces = [stream.push(token) for token in ids]
    assert len(ids) > 5 and "".join(pieces) == "a😀é中!"
    assert set("".join(pieces)) == set("a😀é中!")
    assert stream.flush() == ""


def test_stream_gives_an_unfinished_character_as_replacement_only_at_the_end():
    half = BPE.encode("😀")[:-1]
    stream = BPE.stream()
    assert [stream.push(token) for token in half] == [""] * len(half)
    assert stream.flush() == "\ufffd" == BPE.decode(half)
    assert stream.push(BPE.encode("a")[0]) == "a"  # as new


def test_stream_skips_special_tokens_between_the_bytes_of_a_character():
    first, *rest = BPE.encode("😀")
    ids = [first, BPE.im_end_id, *rest]
    stream = BPE.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "😀" == BPE.decode(ids)
    assert BPE.decode(ids, special=True).count("<|im_end|>") == 1


def test_stream_is_unharmed_by_a_bad_id():
    first, *rest = BPE.encode("é")[0:1] + BPE.encode("😀")
    stream = BPE.stream()
    text = stream.push(first)
    for bad in (-1, BPE.n_vocab, "x", None, 1.5):
        with pytest.raises(BadRequest):
            stream.push(bad)
    assert text + "".join(map(stream.push, rest)) == "é😀"


@BOTH
@pytest.mark.parametrize("bad", [-1, 10**6, 2**63, 10**5000, "7", None, 1.5, [1]], ids=lambda bad: str(type(bad)))
def test_decode_refuses_what_is_no_id(tokenizer, bad):
    with pytest.raises(BadRequest, match=r"ids\[1\]: got .*expected a token id from 0 to ") as caught:
        tokenizer.decode([0, bad])
    assert caught.value.code == "request.token_id"


@BOTH
def test_decode_takes_any_iterable_of_integers(tokenizer):
    np = pytest.importorskip("numpy")
    ids = tokenizer.encode("the user")
    assert tokenizer.decode(iter(ids)) == tokenizer.decode(np.array(ids, np.int32)) == "the user"
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes(ids) == b"the user"


@BOTH
@pytest.mark.parametrize("bad", [None, b"bytes", 7, ["a"]])
def test_encode_refuses_what_is_no_text(tokenizer, bad):
    with pytest.raises(BadRequest, match="text: got") as caught:
        tokenizer.encode(bad)
    assert caught.value.code == "request.text"


@BOTH
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("\ud83d", "\ufffd"),
        ("\ude00", "\ufffd"),
        ("a\ud83d\ude00b", "a😀b"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("😀\ud83d", "😀\ufffd"),
    ],
    ids=["high", "low", "pair", "wrong order", "high and pair", "after an astral character"],
)
def test_surrogate_pairs_are_joined_and_lone_ones_replaced(tokenizer, text, meant):
    assert tokenizer.encode(text) == tokenizer.encode(meant)
    assert tokenizer.decode(tokenizer.encode(text)) == meant


NAMED_TEXTS = {
    "empty": "",
    "NUL": "\0",
    "NULs inside": "a\0\0b",
    "all bytes as characters": "".join(map(chr, range(256))),
    "emoji joined by ZWJ": "👨‍👩‍👧‍👦🏳️‍🌈",
    "flags": "🇨🇭🇯🇵",
    "right to left": "שלום \u202eabc\u202c العربية",
    "noncharacters": "\uffff\ufdd0\U0010ffff",
    "byte order mark": "\ufefftext",
    "private use": "\ue000\U000f0000",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "title case": "ǅungla",
    "carriage returns": "\r\r\n\n\r",
    "zalgo": "Z\u0351\u036b\u0343a\u0321\u034el\u0348g\u0311o",
}


@BOTH
@pytest.mark.parametrize("name", NAMED_TEXTS)
def test_odd_text_comes_back(tokenizer, name):
    text = NAMED_TEXTS[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_empty_text_is_no_tokens():
    assert BPE.encode("") == [] == BPE.encode("", special=True)


@pytest.mark.parametrize("name", specials(BASE))
def test_special_token_spelled_in_text_stays_text(name):
    for text in (name, f"a{name}b", f" {name}\n", name + name):
        ids = BPE.encode(text)
        assert max(ids) < BASE and BPE.decode(ids) == text
    token = BPE.special[name]
    assert BPE.encode(f"a{name}b", special=True) == [*BPE.encode("a"), token, *BPE.encode("b")]
    assert BPE.decode([token]) == "" and BPE.decode([token], special=True) == name


def test_text_between_special_tokens_is_encoded_by_itself():
    # "  " + "b" would be one space and " b"; before a special token the two spaces are the end of the text.
    ids = BPE.encode("a  <|im_end|>b", special=True)
    assert ids == [*BPE.encode("a  "), BPE.im_end_id, *BPE.encode("b")]


def test_longest_special_token_wins():
    metadata = small_bpe()
    names = [b"<|im_end|>>", b"<|im_end|>>>", b"<|x", b"<|xyz"]
    for offset, name in enumerate(names, 100):
        metadata[TOKENS][BASE + offset] = name
    tokenizer = load(metadata)
    special = tokenizer.special
    assert tokenizer.encode("<|im_end|>>>>", special=True) == [special["<|im_end|>>>"], *tokenizer.encode(">")]
    assert tokenizer.encode("<|im_end|>>", special=True) == [special["<|im_end|>>"]]
    assert tokenizer.encode("<|xy<|xyz", special=True) == [special["<|x"], *tokenizer.encode("y"), special["<|xyz"]]


def test_special_token_across_a_chunk_border_is_still_one():
    text = "a " * (MAX_CHUNK_CHARS // 2 - 2) + "<|im_end|>"
    assert BPE.encode(text, special=True)[-1] == BPE.im_end_id


# Long texts. Linear, they take 0.05 to 2 s on a slow core; one quadratic step would take minutes.
LONG = {
    "1 MiB of a": "a" * 2**20,
    "1 MiB of spaces": " " * 2**20,
    "2 MiB of spaces and a letter": " " * 2**21 + "x",
    "1 MiB of newlines": "\n" * 2**20,
    "1 MiB of no-break spaces": "\u00a0" * 2**20,
    "10^6 combining marks": "\u0301" * 10**6,
    "10^6 combining marks on a letter": "e" + "\u0301" * 10**6,
    "10^6 modifier letters": "ʰ" * 10**6,
    "10^6 CJK": "中" * 10**6,
    "10^6 digits": "1" * 10**6,
    "10^6 exclamation marks": "!" * 10**6,
    "10^6 NULs": "\0" * 10**6,
    "10^6 apostrophes": "'" * 10**6,
    "alternating case": "aA" * 500_000,
    "runs just under the limit": (" " * (MAX_RUN_CHARS - 1) + "x") * 40,
    "runs of marks just under the limit": ("\u0301" * (MAX_RUN_CHARS - 1) + " ") * 40,
    "10 MiB mixed": "The user sees 中文, café, e\u0301 and 😀 in\n  12345 images. <|im_end|> it's\t" * 150_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_text_is_linear_and_comes_back(name):
    text = LONG[name]
    started = time.process_time()
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", ["1 MiB of a", "1 MiB of spaces", "10^6 combining marks"])
def test_long_text_is_linear_for_sentencepiece(name):
    started = time.process_time()
    assert SPM.decode(SPM.encode(LONG[name])) == LONG[name]
    assert time.process_time() - started < 20


def test_looking_for_special_tokens_is_linear():
    started = time.process_time()
    for text in ("<" * 10**6, "<|" * 10**6, "<|reserved_token_" * 10**5, "<|im_en" * 10**5):
        assert BPE.decode(BPE.encode(text, special=True)) == text
    assert time.process_time() - started < 20


def slow_cut(text):
    """What the family's tokenizer does, told slowly: chunks, then a cut before the run's 25,001st character."""
    pieces = []
    for start in range(0, len(text), MAX_CHUNK_CHARS):
        piece, run = "", 0
        for character in text[start : start + MAX_CHUNK_CHARS]:
            run = run + 1 if piece and piece[-1].isspace() == character.isspace() else 1
            if run > MAX_RUN_CHARS:
                pieces.append(piece)
                piece, run = "", 1
            piece += character
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "a" * MAX_RUN_CHARS,
        "a" * (MAX_RUN_CHARS + 1),
        "a b" + "c" * (2 * MAX_RUN_CHARS) + " d",
        "a b" + "c" * (2 * MAX_RUN_CHARS + 1) + " d",
        " " * (MAX_RUN_CHARS + 5) + "a" * (MAX_RUN_CHARS + 7),
        "a" * 9 + "\x1c\u3000" * MAX_RUN_CHARS + "b",
        "x " * 3 + "a" * (MAX_RUN_CHARS + 1) + " y" * 12_000,
        "x y " * (MAX_CHUNK_CHARS // 4) + "z",
        "xy" * 5 + " " * (MAX_CHUNK_CHARS + MAX_RUN_CHARS),
    ],
    ids=range(10),
)
def test_long_text_is_cut_where_the_family_cuts_it(text):
    assert list(cut_long_text(text)) == slow_cut(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("a \n中"), st.integers(1, 2 * MAX_RUN_CHARS)), max_size=5))
def test_cut_text_joined_is_the_text(runs):
    text = "".join(character * length for character, length in runs)
    pieces = list(cut_long_text(text))
    assert "".join(pieces) == text
    assert pieces == slow_cut(text)


def test_threads_may_share_a_tokenizer():
    tokenizer = load(small_bpe())
    text = "the user sees 中文 😀 " * 500
    want, got = BPE.encode(text), []
    threads = [threading.Thread(target=lambda: got.append(tokenizer.encode(text))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 8


# ---------------------------------------------------------------------------------------------------------------------
# The real reader


def write_gguf(path, metadata, raw_types=None):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "deepseek2"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("make", [small_bpe, small_spm], ids=["bpe", "spm"])
def test_tokenizer_reads_a_real_file(tmp_path, make):
    core = pytest.importorskip("kimi_vl_cpp._core")
    path = str(tmp_path / "vocabulary.gguf")
    write_gguf(path, make())
    tokenizer = Tokenizer.from_gguf(core.GGUFFile(path), vision=True)
    fake = load(make(), vision=True)
    text = "the user sees 中文 😀 <|im_end|>"
    assert tokenizer.encode(text) == fake.encode(text)
    assert tokenizer.special == fake.special and tokenizer.stop_ids == fake.stop_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "changes",
    [dict(tokens_257=b"\xff\xfe"), dict(tokens=[1, 2]), dict(token_type=[1.5, 2.5]), dict(token_type=["x"]),
     dict(model=3), dict(eos_token_id="x"), dict(merges=[3])],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_wrong_types_in_a_real_file_are_refused(tmp_path, changes):
    core = pytest.importorskip("kimi_vl_cpp._core")
    path = str(tmp_path / "vocabulary.gguf")
    write_gguf(path, changed(small_bpe(), **changes))
    with pytest.raises(BadModelFile, match=r"vocabulary\.gguf.*tokenizer\.ggml\."):
        Tokenizer.from_gguf(core.GGUFFile(path))
