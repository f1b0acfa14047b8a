"""The vocabulary of a GGUF file: what is refused by name, what is accepted, what it becomes."""

from __future__ import annotations

import contextlib
import io
import time

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    BOS,
    CHAT_NAMES,
    CONTROL,
    EOS,
    MERGED,
    MERGES,
    NORMAL,
    SCORES,
    TOKENS,
    TYPES,
    UNUSED,
    USER_DEFINED,
    FakeGGUF,
    bpe_metadata,
    changed,
    load,
    small_bpe,
    small_spm,
    small_tokens,
    spelled,
    with_merges,
)

from kimi_vl_cpp.errors import BadModelFile, KimiVLError, Unsupported
from kimi_vl_cpp.text.tokenizer import Tokenizer

BASE = len(small_tokens())
BPE = load(small_bpe(), vision=True)
SPM = load(small_spm(), vision=True)

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
    with pytest.raises(BadModelFile) as caught:
        load(changed(small_bpe(), **changes))
    assert caught.value.code == code
    assert word in str(caught.value)
    assert str(caught.value).startswith("fake.gguf: tokenizer.ggml.")
    assert "convert" in str(caught.value)  # what to do


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


def real_size_metadata():
    """163,584 normal tokens of up to 3 bytes."""
    tokens = [bytes([byte]) for byte in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    tokens += [bytes([97, a, b]) for a in range(256) for b in range(256)]
    tokens += [bytes([98, a, b]) for a in range(256) for b in range(256)]
    metadata = bpe_metadata(tokens[:163_584])
    metadata[MERGES] = [spelled(t[:-1]) + b" " + spelled(t[-1:]) for t in tokens[256:163_584]]
    return metadata


def test_a_vocabulary_of_real_size_loads_and_refuses():
    metadata = real_size_metadata()
    assert load(metadata).n_vocab == 163_840
    for change, code in ((dict(tokens_163500=b"a"), "duplicate_token"), (dict(merges_163000=b"a"), "merges")):
        with pytest.raises(BadModelFile) as caught:
            load(changed(metadata, **change))
        assert caught.value.code == f"tokenizer.{code}"


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, dict(tokens_163500=b"a"), dict(merges_163000=b"a")])
def test_a_vocabulary_of_real_size_takes_a_moment(change):
    metadata = changed(real_size_metadata(), **change)
    started = time.process_time()
    with contextlib.suppress(BadModelFile):
        load(metadata)
    assert time.process_time() - started < 5  # 0.3 to 0.5 s of a slow core


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
