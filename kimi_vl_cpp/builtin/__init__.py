"""The small model that comes with the package, its card, and the questions that it is judged by.

A demonstration and a measuring instrument of Kimi-VL's exact structure, not Kimi-VL: `docs/builtin-model.md`. Owns
where the files are: they are found as package data, and copied to a temporary folder, once in a process, when the
package does not lie in a folder. Knows nothing of what is in them.
"""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import BadModelFile

MODEL_NAME = "model.gguf"
QUESTIONS_FOLDER_NAME = "eval"

# What `kimi-vl doctor` asks, about a picture that is also the first of examples/.
CHECK_PICTURE_NAME = "receipt.png"
CHECK_QUESTION = "What is the total?"
CHECK_ANSWER = "$10.05"

_kept: dict[str, Path] = {}
_stack = ExitStack()
atexit.register(_stack.close)


def model_path() -> Path:
    """The GGUF file, text and vision in one. Raises BadModelFile "builtin.missing" when this installation has none."""
    return _on_disk(_present("the built-in model", "name a model of your own", MODEL_NAME))


def questions_folder() -> Path:
    """The folder of the held-out questions. Raises BadModelFile "builtin.missing"."""
    what, instead = "what `kimi-vl eval` asks", "name a folder of your own with --data"
    _present(what, instead, QUESTIONS_FOLDER_NAME, "questions.jsonl")
    return _on_disk(_present(what, instead, QUESTIONS_FOLDER_NAME))


def check_picture() -> Path:
    """The picture of CHECK_QUESTION. Raises BadModelFile "builtin.missing"."""
    return _on_disk(_present("a picture to check the built-in model", "go without", CHECK_PICTURE_NAME))


def _root() -> Traversable:
    return files(__name__)


def _present(what: str, instead: str, *names: str) -> Traversable:
    item = _root()
    for name in names:
        item = item / name
    if not item.is_file() and not item.is_dir():
        raise BadModelFile(
            f"{item}: {what} is not in this installation: install the package again, or {instead}", "builtin.missing"
        )
    return item


def _on_disk(item: Traversable) -> Path:
    if isinstance(item, Path):
        return item
    key = str(item)
    if key not in _kept:
        if item.is_dir():
            folder = Path(_stack.enter_context(TemporaryDirectory(prefix="kimi-vl-")))
            for part in item.iterdir():
                if part.is_file():
                    (folder / part.name).write_bytes(part.read_bytes())
            _kept[key] = folder
        else:
            _kept[key] = _stack.enter_context(as_file(item))
    return _kept[key]
