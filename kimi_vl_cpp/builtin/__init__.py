"""The small model that comes with the package, and the questions that it is judged by.

A demonstration and a measuring instrument of Kimi-VL's exact structure, not Kimi-VL: `docs/builtin-model.md`.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import Unsupported

_FOLDER = Path(__file__).parent


def model_path() -> Path:
    """The GGUF file. Raises Unsupported "builtin.missing" when this installation has none."""
    return _present("model.gguf")


def questions_folder() -> Path:
    """The folder of the held-out questions. Raises Unsupported "builtin.missing"."""
    return _present("questions.jsonl").parent


def _present(name: str) -> Path:
    path = _FOLDER / name if name == "model.gguf" else _FOLDER / "eval" / name
    if not path.is_file():
        raise Unsupported(
            f"{path}: the built-in model is not in this installation: install the package again, or name a model of "
            "your own",
            "builtin.missing",
        )
    return path
