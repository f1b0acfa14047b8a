"""Names that have moved still work, and say where they are now."""

from __future__ import annotations

import importlib
import sys

import pytest

from kimi_vl_cpp import KimiVL


@pytest.mark.parametrize("name", ["engine", "gate", "tokenizer", "processor", "image_cache"])
def test_a_moved_attribute_warns_and_is_the_one_of_loaded(tiny_model, name):
    with KimiVL(tiny_model().text) as model:
        with pytest.warns(DeprecationWarning, match=rf"KimiVL\.loaded\.{name}"):
            assert getattr(model, name) is getattr(model.loaded, name)
        with pytest.raises(AttributeError, match="no attribute 'engines'"):
            _ = model.engines


@pytest.mark.parametrize(
    ("module", "names"), [("prompt", ["build_prompt", "ImagePart"]), ("evaluate", ["Judge", "Question"])]
)
def test_a_moved_module_warns_and_has_its_names(module, names):
    sys.modules.pop(f"kimi_vl_cpp.{module}", None)
    with pytest.warns(DeprecationWarning, match="has moved"):
        found = importlib.import_module(f"kimi_vl_cpp.{module}")
    assert all(hasattr(found, name) for name in names)
