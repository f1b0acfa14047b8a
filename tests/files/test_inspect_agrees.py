"""What `kimi-vl inspect` passes, the loader opens, and what it refuses, the loader refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.cli.inspect.report import make_report
from kimi_vl_cpp.errors import KimiVLError
from kimi_vl_cpp.files.opening import open_gguf
from kimi_vl_cpp.testing import make_tiny_model
from kimi_vl_cpp.text.vocabulary import CHAT_TOKENS, MEDIA_TOKENS

BLOCK = ("blk.0.", "blk.1.", "v.blk.0.")


def passes(path: Path) -> bool:
    return not any(finding["severity"] == "error" for finding in make_report(open_gguf(path))["findings"])


def opens(text: Path, mmproj: Path | None = None) -> bool:
    try:
        with KimiVL(text, mmproj=mmproj, n_threads=1):
            return True
    except KimiVLError:
        return False


def names(path: Path) -> list[str]:
    """Every tensor outside of the blocks, and those of one block of each kind."""
    found = [tensor.name for tensor in open_gguf(path).tensors]
    return [name for name in found if not name.startswith(("blk.", "v.blk.")) or name.startswith(BLOCK)]


def drop(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def rename(tensors: dict[str, Any], name: str) -> None:
    tensors[name.replace(".weight", ".w").replace(".bias", ".b")] = tensors.pop(name)


def cut(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = make_tiny_model(tmp_path_factory.mktemp("good"), seed=1)
    assert model.mmproj is not None and passes(model.text) and passes(model.mmproj) and opens(model.text, model.mmproj)
    return model


@pytest.mark.parametrize("change", [drop, rename, cut])
@pytest.mark.parametrize("part", ["text", "mmproj"])
def test_of_changed_tensors(
    good: Any, tmp_path: Path, part: str, change: Callable[[dict[str, Any], str], None]
) -> None:
    refused = 0
    for i, name in enumerate(names(getattr(good, part))):
        model = make_tiny_model(tmp_path / str(i), seed=1, edit=lambda t, name=name: change(t, name))
        loads = opens(model.text, good.mmproj) if part == "text" else opens(good.text, model.mmproj)
        assert passes(getattr(model, part)) == loads, name
        refused += not loads
    assert refused > 10


@pytest.mark.parametrize("part", ["text", "mmproj"])
@pytest.mark.parametrize("value", [None, 0, 3, "x", [1, 2]], ids=repr)
def test_of_changed_metadata(good: Any, tmp_path: Path, part: str, value: Any) -> None:
    prefixes = ("deepseek2.", "tokenizer.ggml.", "general.") if part == "text" else ("clip.", "general.")
    stored = open_gguf(getattr(good, part)).keys()
    keys = [key for key in stored if key.startswith(prefixes)]
    assert len(keys) > 10
    differing = []
    for i, key in enumerate(keys):
        if part == "text":
            model = make_tiny_model(tmp_path / str(i), seed=1, vision="none", metadata={key: value})
            loads = opens(model.text)
        else:
            model = make_tiny_model(tmp_path / str(i), seed=1, mmproj_metadata={key: value})
            loads = opens(good.text, model.mmproj)
        if passes(getattr(model, part)) != loads:
            differing.append((key, "opens" if loads else "is refused"))
    assert not differing


@pytest.mark.parametrize("token", [*CHAT_TOKENS, *MEDIA_TOKENS])
@pytest.mark.parametrize("vision", ["none", "single"])
def test_of_vocabularies_without_a_token(good: Any, tmp_path: Path, vision: Any, token: str) -> None:
    tokens = [word if word != token else "x" * 40 for word in open_gguf(good.text).get("tokenizer.ggml.tokens")]
    model = make_tiny_model(tmp_path, seed=1, vision=vision, metadata={"tokenizer.ggml.tokens": tokens})
    assert passes(model.text) == opens(model.text) == (vision == "none" and token in MEDIA_TOKENS)
