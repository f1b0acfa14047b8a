"""`--lora` on the command line."""

from __future__ import annotations

import pytest
from adapter_files import random_gguf_adapter

from kimi_vl_cpp import builtin
from kimi_vl_cpp.cli.adapters import always, always_or_named
from kimi_vl_cpp.cli.app import main
from kimi_vl_cpp.cli.exits import UsageError


def test_paths_scales_and_names_are_told_apart(tmp_path):
    odd = tmp_path / "a=b"
    odd.touch()
    assert always(["x", "y=0.5", str(odd), f"{odd}=2"]) == [("x", 1.0), ("y", 0.5), (str(odd), 1.0), (str(odd), 2.0)]
    assert always_or_named(["x", "y=0.5", str(odd)]) == [("x", 1.0), ("y", 0.5), (str(odd), 1.0)]
    assert always_or_named(["n=./x", "m-1=./y=0.5"]) == {"n": ("./x", 1.0), "m-1": ("./y", 0.5)}
    assert always(None) is None and always_or_named([]) is None
    for wrong in (["n=./x", "./y"], ["n=./x", "n=./y"], ["n=./x=z"]):
        with pytest.raises(UsageError):
            always_or_named(wrong)
    with pytest.raises(UsageError, match="neither a number"):
        always(["n=./x"])


def test_run_answers_with_the_adapter(tmp_path, capsys):
    adapter = str(random_gguf_adapter(tmp_path / "a.gguf", builtin.model_path(), only="attn_"))
    asked = ["run", "What is this?", "-n", "8", "--temp", "0"]

    def answer(*more: str) -> str:
        assert main([*asked, *more]) == 0
        return capsys.readouterr().out

    assert answer() == answer("--lora", f"{adapter}=0") != answer("--lora", adapter)


def test_an_adapter_that_is_not_there_is_named(capsys):
    assert main(["run", "Hi", "--lora", "/no/such/adapter"]) == 3
    assert "/no/such/adapter: there is no such adapter" in capsys.readouterr().err
