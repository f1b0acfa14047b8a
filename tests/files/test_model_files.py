"""Which vision file is taken for a text file, and what is said when files are in the wrong place."""

from __future__ import annotations

import types

import pytest

from kimi_vl_cpp.errors import BadModelFile, BadRequest
from kimi_vl_cpp.files import model_files
from kimi_vl_cpp.files.variants import default_in_token_limit, detect_variant


class FakeGGUF:
    """A file whose kind its name tells: mmproj files are vision files unless the name says otherwise."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file_bytes = 10
        name = path.lower().rsplit("/", 1)[-1]
        vision = "mmproj" in name and "liar" not in name
        names = ["v.patch_embd.weight"] if vision or "onefile" in name else []
        names += [] if vision else ["token_embd.weight"]
        self.tensors = [types.SimpleNamespace(name=tensor) for tensor in names]
        self.metadata = {
            "general.architecture": "clip" if vision else "deepseek2",
            "deepseek2.block_count": 27,
            "deepseek2.context_length": 4096,
        }
        if vision:
            self.metadata["clip.projector_type"] = "internvl" if "intern" in name else "kimivl"

    def get(self, key):
        return self.metadata.get(key)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "open_gguf", lambda path: FakeGGUF(str(path)))
    monkeypatch.setattr(model_files, "check_vision_file", lambda gguf, hidden_size: None)

    def make(*names: str):
        for name in names:
            (tmp_path / name).write_bytes(b"0123456789")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("text", "beside", "expected"),
    [
        ("Kimi-VL-A3B-Thinking-2506-Q4_K_M.gguf", ["mmproj-Kimi-VL-A3B-Thinking-2506-Q8_0.gguf"], 0),
        ("Kimi-VL-A3B-Thinking-2506.Q4_K_M.gguf", ["Kimi-VL-A3B-Thinking-2506.mmproj-f16.gguf"], 0),
        ("Kimi-VL-A3B-Instruct-IQ4_XS.gguf", ["mmproj-model-f16.gguf"], 0),
        ("Kimi-VL-A3B-Instruct-UD-Q4_K_XL.gguf", ["mmproj-F16.gguf"], 0),
        ("kimi-full-q4_k_m.gguf", ["mmproj-full-f16.gguf", "mmproj-full-q8_0.gguf"], 0),
        ("text-f32.gguf", ["mmproj-f16.gguf", "mmproj-f32.gguf", "mmproj-q8_0.gguf"], 1),
        ("kimi-Q8_0.gguf", ["MMPROJ-KIMI-Q8_0.GGUF", "mmproj-kimi-f16.gguf"], 0),
        ("kimi-q4_k_m-00001-of-00003.gguf", ["mmproj-kimi-f16.gguf"], 0),
        # the better match wins over the precision
        ("kimi-instruct-q4_k_m.gguf", ["mmproj-f16.gguf", "mmproj-kimi-instruct-q8_0.gguf"], 1),
        # another variant or another family's file beside the right one
        ("kimi-instruct-f16.gguf", ["mmproj-kimi-thinking-f16.gguf", "mmproj-kimi-instruct-f16.gguf"], 1),
        ("kimi-f16.gguf", ["mmproj-intern-f16.gguf", "mmproj-q8_0.gguf"], 1),
    ],
)
def test_vision_file_is_found(folder, text, beside, expected):
    path = folder(text, *beside)
    assert model_files.resolve(path / text).mmproj == path / beside[expected]


@pytest.mark.parametrize(
    ("text", "beside", "said"),
    [
        ("kimi.gguf", [], "no file"),
        ("kimi.gguf", ["other.gguf", "mmproj.txt"], "no file"),
        ("Kimi-Thinking-2506-f16.gguf", ["mmproj-Kimi-Instruct-f16.gguf"], "mmproj-Kimi-Instruct-f16.gguf"),
        ("Kimi-Thinking-2506-f16.gguf", ["mmproj-Kimi-Thinking-f16.gguf"], "another model or variant"),
        ("qwen-f16.gguf", ["mmproj-kimi-f16.gguf"], "another model or variant"),
        ("kimi-f16.gguf", ["mmproj-f16-intern.gguf"], "another model"),
        ("intern-kimi-f16.gguf", ["mmproj-intern-f16.gguf"], "clip.projector_type is 'internvl'"),
    ],
)
def test_no_vision_file_that_fits_is_no_error_but_says_why(folder, text, beside, said):
    files = model_files.resolve(folder(text, *beside) / text)
    assert files.mmproj is None
    assert said in files.why_no_mmproj
    assert "mmproj" in files.why_no_mmproj


@pytest.mark.parametrize(
    "beside",
    [
        ["mmproj-a-f16.gguf", "mmproj-b-f16.gguf"],
        ["mmproj-a-q6_k.gguf", "mmproj-a-q4_0.gguf"],
    ],
)
def test_several_that_fit_equally_are_an_error_that_lists_them(folder, beside):
    path = folder("kimi-a-b-q5_k_m.gguf", *beside)
    with pytest.raises(BadModelFile) as caught:
        model_files.resolve(path / "kimi-a-b-q5_k_m.gguf")
    assert caught.value.code == "model_file.mmproj_ambiguous"
    assert all(name in str(caught.value) for name in beside)


def test_vision_file_given_as_the_model_is_named_so(folder):
    path = folder("mmproj-kimi-f16.gguf")
    with pytest.raises(BadModelFile) as caught:
        model_files.resolve(path / "mmproj-kimi-f16.gguf")
    assert caught.value.code == "model_file.is_mmproj"
    assert "as mmproj" in str(caught.value)


def test_text_file_given_as_mmproj_is_named_so(folder):
    path = folder("kimi-q4_k_m.gguf", "kimi-q8_0.gguf")
    with pytest.raises(BadModelFile) as caught:
        model_files.resolve(path / "kimi-q4_k_m.gguf", path / "kimi-q8_0.gguf")
    assert caught.value.code == "model_file.mmproj_is_text"


def test_a_text_file_that_is_only_named_mmproj_is_not_taken(folder):
    path = folder("kimi-f16.gguf", "mmproj-liar-kimi-f16.gguf")
    files = model_files.resolve(path / "kimi-f16.gguf")
    assert files.mmproj is None
    assert "text model" in files.why_no_mmproj


def test_one_file_with_both_parts_needs_no_vision_file(folder):
    path = folder("kimi-onefile-f16.gguf", "mmproj-f16.gguf")
    text = path / "kimi-onefile-f16.gguf"
    assert model_files.resolve(text).mmproj is None
    assert model_files.resolve(text, text).mmproj is None
    with pytest.raises(BadModelFile, match="its own vision part"):
        model_files.resolve(text, path / "mmproj-f16.gguf")


@pytest.mark.parametrize("path", [None, 5, b"x.gguf", "", "a\0b", ["x"]])
def test_a_path_that_is_none_is_a_request_error(path):
    with pytest.raises(BadRequest):
        model_files.resolve(path)


@pytest.mark.parametrize(
    ("metadata", "name", "variant"),
    [
        ({"general.name": "Kimi VL A3B Thinking 2506"}, "x.gguf", "thinking-2506"),
        ({"general.name": "Kimi VL A3B Thinking", "general.version": "2506"}, "x.gguf", "thinking-2506"),
        ({"general.name": "Kimi VL A3B Thinking"}, "x.gguf", "thinking"),
        ({"general.name": "Kimi VL A3B Thinking"}, "kimi-thinking-2506.gguf", "thinking-2506"),
        ({"general.basename": "Kimi-VL", "general.finetune": "Instruct"}, "x.gguf", "instruct"),
        ({"general.name": "Kimi VL A3B Instruct"}, "kimi-thinking-2506.gguf", "instruct"),
        ({}, "Kimi-VL-A3B-Instruct-Q4_K_M.gguf", "instruct"),
        ({"general.name": 5}, "weights.gguf", "unknown"),
        ({"general.name": "rethinking"}, "weights12506.gguf", "unknown"),
    ],
)
def test_variant_is_told_by_metadata_then_by_name(metadata, name, variant):
    assert detect_variant(metadata.get, f"/models/2506/{name}") == variant


def test_only_the_2506_release_takes_large_pictures():
    assert default_in_token_limit("thinking-2506") == 16384
    assert {default_in_token_limit(variant) for variant in ("instruct", "thinking", "unknown")} == {4096}


def test_a_home_folder_is_expanded_in_both_paths(folder, monkeypatch):
    path = folder("kimi-f16.gguf", "mmproj-kimi-f16.gguf")
    monkeypatch.setenv("HOME", str(path))
    files = model_files.resolve("~/kimi-f16.gguf", "~/mmproj-kimi-f16.gguf")
    assert (files.text, files.mmproj) == (path / "kimi-f16.gguf", path / "mmproj-kimi-f16.gguf")
