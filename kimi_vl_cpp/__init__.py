"""A local runtime for the Kimi-VL vision-language model.

    from kimi_vl_cpp import KimiVL
    with KimiVL("kimi.gguf") as model:
        print(model.chat("What is this?", images=["cat.jpg"]).text)

Importing the package is quick: the C++ core, NumPy and Pillow are loaded when a name that needs them is first used.
"""

from __future__ import annotations

import importlib

from .version import __version__

TYPE_CHECKING = False  # as in typing, which is not imported: importing the package stays quick

_HOME = {
    "KimiVL": "model",
    "Conversation": "chat.conversation",
    "PieceStream": "generation.stream",
    "Document": "media.pdf",
    "TiffDocument": "media.tiff",
    "Video": "media.video",
    "Response": "types",
    "Piece": "types",
    "Usage": "types",
    "Timings": "types",
    "GroundingError": "errors",
    "AgentStopped": "errors",
    "KimiVLError": "errors",
    "BadModelFile": "errors",
    "BadDocument": "errors",
    "BadVideo": "errors",
    "BadImage": "errors",
    "BadRequest": "errors",
    "ContextFull": "errors",
    "OutOfMemory": "errors",
    "Cancelled": "errors",
    "Unsupported": "errors",
}

if TYPE_CHECKING:
    from typing import Any

    from .chat.conversation import Conversation
    from .errors import (
        AgentStopped,
        BadDocument,
        BadImage,
        BadModelFile,
        BadRequest,
        BadVideo,
        Cancelled,
        ContextFull,
        GroundingError,
        KimiVLError,
        OutOfMemory,
        Unsupported,
    )
    from .generation.stream import PieceStream
    from .media.pdf import Document
    from .media.tiff import TiffDocument
    from .media.video import Video
    from .model import KimiVL
    from .types import Piece, Response, Timings, Usage

__all__ = [
    "AgentStopped",
    "BadDocument",
    "BadImage",
    "BadModelFile",
    "BadRequest",
    "BadVideo",
    "Cancelled",
    "ContextFull",
    "Conversation",
    "Document",
    "GroundingError",
    "KimiVL",
    "KimiVLError",
    "OutOfMemory",
    "Piece",
    "PieceStream",
    "Response",
    "TiffDocument",
    "Timings",
    "Unsupported",
    "Usage",
    "Video",
    "__version__",
]


def _refuse_sub_interpreter() -> None:
    """Raises ImportError in a sub-interpreter, where loading the C++ core would wait for the GIL forever: the core is
    bound to the state of the process's first interpreter."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13 and later; before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError("kimi_vl_cpp cannot be used in a sub-interpreter: use threads or processes")
        return


_refuse_sub_interpreter()


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
