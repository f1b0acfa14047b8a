"""Comparisons of models: the numbers against NumPy, what goes wrong, and that a model is at no distance from itself."""

from __future__ import annotations

import json
import math
import os
import re
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp import KimiVL, cli
from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError
from kimi_vl_cpp.evaluation.run import wilson
from kimi_vl_cpp.quantize.comparison import rows as compare_rows
from kimi_vl_cpp.quantize.comparison.compare import compare
from kimi_vl_cpp.quantize.comparison.data import QUESTIONS, TEXTS, write_builtin
from kimi_vl_cpp.quantize.comparison.html import page
from kimi_vl_cpp.quantize.comparison.report import labels
from kimi_vl_cpp.quantize.comparison.rows import RowFile, judge, log_softmax
from kimi_vl_cpp.quantize.importance.file import Imatrix, write_imatrix
from kimi_vl_cpp.testing import dequantize
from kimi_vl_cpp.text.chat_template import ImagePart, build_prompt

QUESTION = "What is <b>this</b>?"


@pytest.fixture(scope="module")
def reference(tiny_model):
    return tiny_model(seed=3, routing="random")


@pytest.fixture(scope="module")
def candidate(tiny_model):
    return tiny_model(seed=3, routing="random", text_type="Q4_0", vision_type="F16")


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "a.txt").write_text("Some words to read, and then some more of them. " * 3)
    (root / "b & <i>.md").write_text("A second text.")
    Image.fromarray(reference.random_picture(56, 84)).save(root / "p.png")
    (root / "p.txt").write_text(QUESTION)
    return root


@pytest.fixture(scope="module")
def report(reference, candidate, folder):
    return compare(reference.text, [candidate.text], data=folder, ctx=64, answer=6, n_threads=1)


def softmax_log(logits):
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(a, b):
    p, q = softmax_log(a), softmax_log(b)
    return (np.exp(p) * (p - q)).sum(-1)


# The numbers


def test_a_model_is_at_no_distance_from_itself(reference, folder):
    (found,) = compare(reference.text, [reference.text], data=folder, ctx=64, answer=6).candidates
    for part in (found.overall, found.text, found.picture):
        assert (part.mean, part.max, part.top) == (0.0, 0.0, 1.0)
    assert found.embedding == 0.0 and found.n_same_answers == 1
    assert not any(t.squared for t in found.weights.tensors)


def test_texts_are_as_far_apart_as_numpy_says(reference, candidate, folder, report):
    text = (folder / "b & <i>.md").read_text()
    both = []
    for model in (reference, candidate):
        with KimiVL(model.text) as opened:
            ids = opened.loaded.tokenizer.encode(text)
            (prompt,) = build_prompt(opened.loaded.tokenizer, [{"role": "user", "content": text}])
            first = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
            both.append(opened.logits([prompt])[first - 1 : first - 1 + len(ids)])
    expected = divergence(*both)
    (found,) = [p for p in report.candidates[0].prompts if p.name.startswith("b &")]
    # The prompt is read in other pieces here: 1e-5 of a logit (engine_support.FLOAT), and KL moves by no more.
    assert found.divergence.n == len(expected)
    assert found.divergence.mean == pytest.approx(expected.mean(), rel=1e-3, abs=1e-5)
    assert found.divergence.max == pytest.approx(expected.max(), rel=1e-3, abs=1e-5)
    chosen = -softmax_log(both[0])[np.arange(len(ids)), ids].mean()
    assert found.divergence.perplexity[0] == pytest.approx(math.exp(chosen), rel=1e-4)


def test_pictures_are_judged_along_the_answer_of_the_reference(reference, candidate, folder, report):
    both, answers, embedded = [], [], []
    for model in (reference, candidate):
        with KimiVL(model.text) as opened:
            embeddings = opened.encode_image(folder / "p.png")
            content = [{"type": "image", "image": 0}, {"type": "text", "text": QUESTION}]
            parts = build_prompt(opened.loaded.tokenizer, [{"role": "user", "content": content}])
            parts = [embeddings if isinstance(part, ImagePart) else part for part in parts]
            answers.append(opened.generate(parts, 6, temperature=0.0))
            forced = [*parts[:-1], parts[-1] + answers[0][: 6 - 1]]
            both.append(opened.logits(forced)[-min(6, len(answers[0]) + 1) :])
            embedded.append(embeddings.astype(np.float64))
            words = [opened.detokenize(ids) for ids in answers]
    expected = divergence(*both)
    (found,) = [p for p in report.candidates[0].prompts if p.is_picture]
    assert found.divergence.n == len(expected)
    assert found.divergence.mean == pytest.approx(expected.mean(), rel=1e-3, abs=1e-5)
    assert found.answers == tuple(words) and found.question == QUESTION
    error = np.linalg.norm(embedded[1] - embedded[0]) / np.linalg.norm(embedded[0])
    assert error > 0
    assert found.embedding == pytest.approx(error, rel=1e-4)  # float32 squares against float64


def test_errors_of_weights_are_those_of_numpy(reference, candidate, report):
    by_name = {t.name: t for t in report.candidates[0].weights.tensors}
    assert by_name.keys() == reference.tensors.keys()
    for name, (kind, blocks) in candidate.encoded.items():
        a, b = reference.tensors[name].astype(np.float64), dequantize(blocks, kind).astype(np.float64)
        expected = np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-300)
        assert by_name[name].relative == pytest.approx(expected, rel=1e-5), name  # float32 squares
    assert by_name["blk.0.attn_q.weight"].relative > 0.01
    assert by_name["blk.0.attn_q.weight"].role == "blk.*.attn_q" and by_name["output.weight"].layer is None


def test_the_numbers_do_not_depend_on_threads(reference, candidate, folder, report):
    other = compare(reference.text, [candidate.text], data=folder, ctx=64, answer=6, n_threads=2)

    def timeless(values):
        values = json.loads(json.dumps(values.to_dict()))
        for part in (values["reference"], *values["candidates"]):
            del part["speed"]
        del values["seconds"]
        return values

    assert timeless(other) == timeless(report)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 12.0), st.floats(0.001, 1.0))
def test_half_precision_costs_what_the_module_says(seed, sharpness, change):
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal((4, 700)) * sharpness).astype(np.float32)
    b = a + (rng.standard_normal(a.shape) * change).astype(np.float32)
    exact = log_softmax(a)
    top, targets = np.argmax(exact, 1), np.zeros(4, np.int64)
    full = judge(exact, top, b, targets).kl
    half = judge(exact.astype(np.float16), top, b, targets).kl
    p = np.exp(exact.astype(np.float64))
    entropy = -(p * exact).sum(1)
    spread = (p * np.abs(exact - log_softmax(b))).sum(1)
    # Every logarithm is off by at most 2**-11 of itself, so a probability too by that share of its logarithm.
    worst = np.abs(exact).max()
    bound = 2.0**-10 * (entropy + full) + 2.0**-10 * worst * spread
    assert (np.abs(half - full) <= bound + 1e-9).all()
    np.testing.assert_allclose(full, divergence(a, b), rtol=1e-4, atol=1e-6)  # float32 logarithms


def test_half_precision_gives_nearly_the_same_report(reference, candidate, folder, report):
    half = compare(reference.text, [candidate.text], data=folder, ctx=64, answer=6, store="float16", weights=False)
    assert (half.stored_as, report.stored_as) == ("float16", "float32")
    a, b = half.candidates[0].overall, report.candidates[0].overall
    assert a.mean == pytest.approx(b.mean, abs=0.006)  # 2**-10 x the entropy of 576 tokens alike (6.4 nats)
    assert a.top == b.top


def test_intervals_are_those_of_wilson():
    # Computed from the formula by hand with fractions for z = 1.959964: 8 of 10, and the ends.
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    assert wilson(0, 5)[1] == pytest.approx(0.43449, abs=1e-5)


def test_rows_come_back_as_they_went(tmp_path):
    rows = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    file = RowFile(tmp_path, 5, 7, "auto")
    file.write(rows[:2])
    file.write(rows[2:])
    np.testing.assert_array_equal(file.read(1, 3), rows[1:4])
    assert not list(tmp_path.iterdir())  # it has no name
    file.close()


def test_labels_leave_out_what_all_files_are_called():
    assert labels([Path("Kimi-VL-F16.gguf"), Path("Kimi-VL-Q4_K_M.gguf")]) == ["F16", "Q4_K_M"]
    assert labels([Path("Q4_K_M.gguf"), Path("Q4_K_S.gguf")]) == ["Q4_K_M", "Q4_K_S"]
    assert labels([Path("x/tiny.gguf"), Path("y/tiny.gguf")]) == ["1: tiny", "2: tiny"]


def test_the_set_of_our_own_has_texts_and_pictures(tmp_path, reference):
    write_builtin(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == set(QUESTIONS)
    found = compare(reference.text, [reference.text], answer=2, ctx=64, chunks=6, weights=False)
    assert (found.n_texts, found.n_pictures) == (3, 3) and found.n_left_out > 0
    assert {p.name for p in found.candidates[0].prompts if p.is_picture} <= {f"{name}.png" for name in QUESTIONS}
    assert not set(TEXTS) & set(QUESTIONS)


# What goes wrong


def test_other_vocabularies_are_told_apart(reference, tiny_model, folder):
    larger = tiny_model(seed=3, n_vocab=640, vision="none")
    with pytest.raises(BadRequest, match=r"different vocabularies.*576 and 640") as caught:
        compare(reference.text, [larger.text], data=folder)
    assert caught.value.code == "compare.vocabulary"


def test_a_candidate_without_vision_is_refused_when_there_are_pictures(reference, tiny_model, folder):
    blind = tiny_model(seed=3, vision="none")
    with pytest.raises(BadRequest) as caught:
        compare(reference.text, [blind.text], data=folder, ctx=64, answer=2)
    assert caught.value.code == "compare.no_vision"
    found = compare(blind.text, [reference.text], data=folder, ctx=64, answer=2)
    assert found.n_pictures == 0 and [why for _, why in found.skipped]


def test_a_model_that_computes_nonsense_is_named(reference, tiny_model, folder):
    def poison(tensors):
        tensors["blk.0.ffn_down.weight"][0, -1] = np.nan  # loading looks at the first ones

    broken = tiny_model(seed=3, edit=poison)
    with pytest.raises(BadModelFile) as caught:
        compare(reference.text, [broken.text], data=folder, ctx=64, answer=2)
    assert caught.value.code == "compare.not_finite" and str(broken.text) in str(caught.value)


def test_a_full_disk_is_told_before_anything_is_computed(reference, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(compare_rows.shutil, "disk_usage", lambda path: usage(1, 1, 0))
    with pytest.raises(KimiVLError, match="TMPDIR") as caught:
        compare(reference.text, [reference.text], data=folder)
    assert caught.value.code == "compare.disk_space"


@pytest.mark.parametrize("stage", ["compare_data", "compare", "compare_weights"])
def test_stopping_leaves_nothing_behind(reference, candidate, folder, tmp_path, monkeypatch, stage):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stop(now, done, total):
        if now == stage and done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(reference.text, [candidate.text], data=folder, ctx=64, answer=4, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"ctx": 4}, {"answer": 0}, {"chunks": 0}, {"ctx": True}])
def test_odd_options_are_refused(reference, option):
    with pytest.raises(BadRequest) as caught:
        compare(reference.text, [reference.text], **option)
    assert caught.value.code == "compare.option"


# The page


class Checker(HTMLParser):
    """Every tag is closed; collects addresses and texts."""

    VOID = frozenset({"meta", "img", "br", "rect", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.words = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_else_and_shows_texts_as_they_are(report):
    checker = Checker()
    text = page(report)
    checker.feed(text)
    assert not checker.open
    assert all(
        address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")) for address in checker.addresses
    )
    assert not checker.tags & {"script", "link", "iframe", "object", "b", "base"}
    assert not re.search(r"url\(|@import|https?:", text)
    words = "".join(checker.words)
    assert QUESTION in words and "b & <i>.md" in words
    assert report.verdict() in words.replace("\N{NO-BREAK SPACE}", " ")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_links_of_the_page_lead_somewhere(report):
    text = page(report)
    for name in re.findall(r'href="#(\w+)"', text):
        assert f'id="{name}"' in text


# The command


@pytest.fixture
def run(capsys, reference, candidate, folder):
    def call(*arguments):
        given = [reference.text, candidate.text, "--data", folder, "-c", "64", "--answer", "4"]
        code = cli.main(["compare", *(str(a) for a in (*given, *arguments))])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_the_table_is_narrow_and_says_the_verdict_first(run):
    code, out, _ = run()
    assert code == 0
    verdict, *table = out.splitlines()
    assert "same next token" in verdict
    assert max(len(line) for line in table) <= 70
    assert any(line.split()[:1] == ["pictures"] for line in table)


def test_report_figures_and_json_are_written(run, tmp_path):
    imatrix = tmp_path / "i.gguf"
    name = "blk.1.ffn_gate_exps.weight"
    write_imatrix(imatrix, Imatrix({name: (np.ones((8, 64), np.float32), np.arange(1, 9))}))
    code, out, err = run("--report", tmp_path / "r.html", "--png", tmp_path / "figs", "--json", "--imatrix", imatrix)
    assert code == 0, err
    values = json.loads(out)
    assert values["experts"] == {"1": list(range(1, 9))}
    assert "How often experts were used" in (tmp_path / "r.html").read_text()
    figures = sorted(path.name for path in (tmp_path / "figs").iterdir())
    assert figures == sorted(
        f"compare-{name}.png" for name in ("experts", "kl", "weights-1", "weights-text-layers", "weights-vision-layers")
    )
    for figure in figures:
        Image.open(tmp_path / "figs" / figure).verify()
    assert sorted(os.listdir(tmp_path)) == ["figs", "i.gguf", "r.html"]


def test_what_exists_is_not_replaced_unless_asked(run, tmp_path, reference):
    path = tmp_path / "r.html"
    path.write_text("mine")
    code, _, err = run("--report", path)
    assert code == 2 and "--force" in err and path.read_text() == "mine"
    code, _, err = run("--report", reference.text, "--force")
    assert code == 2 and "same file as the input" in err
    assert run("--report", path, "--force")[0] == 0 and path.read_text().startswith("<!doctype html>")


def test_a_stopped_command_leaves_no_report(run, tmp_path, monkeypatch):
    def stop(self, stage, done, total):
        if stage == "compare_weights":
            raise KeyboardInterrupt

    monkeypatch.setattr("kimi_vl_cpp.cli.progress.Bar.__call__", stop)
    code, out, err = run("--report", tmp_path / "r.html", "--png", tmp_path / "figs")
    assert code == 130 and not out and "nothing was written" in err
    assert not list(tmp_path.iterdir())


def test_one_file_is_not_enough(capsys, reference):
    assert cli.main(["compare", str(reference.text)]) == 2
    assert "at least one candidate" in capsys.readouterr().err
