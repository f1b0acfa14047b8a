"""The tokenizer: the reference's ids, hostile texts, decoding id by id. What is refused: test_vocabulary.py."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import (
    REFERENCE,
    TOKENS,
    bpe_metadata,
    load,
    small_bpe,
    small_spm,
    small_tokens,
    specials,
    with_merges,
)

from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.text.bpe import MAX_CHUNK_CHARS, MAX_RUN_CHARS, PATTERN, cut_long_text

BASE = len(small_tokens())
BPE = load(small_bpe(), vision=True)
SPM = load(small_spm(), vision=True)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])


# ---------------------------------------------------------------------------------------------------------------------
# The reference


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
    # By rank "abc" is ab + c; by the order of the merges it would be a + bc.
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc"]
    tokenizer = load(with_merges(bpe_metadata(tokens), [b"b c", b"a b"]))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("abc")] == ["ab", "c"]


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
def test_long_text_comes_back(name):
    text = LONG[name][: 4 * MAX_RUN_CHARS + 7]
    assert BPE.decode(BPE.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_text_is_linear_and_comes_back(name):
    text = LONG[name]
    started = time.process_time()
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert time.process_time() - started < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1 MiB of a", "1 MiB of spaces", "10^6 combining marks"])
def test_long_text_is_linear_for_sentencepiece(name):
    started = time.process_time()
    assert SPM.decode(SPM.encode(LONG[name])) == LONG[name]
    assert time.process_time() - started < 20


@pytest.mark.slow
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
