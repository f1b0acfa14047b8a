"""The exceptions of the package, and the process exit code that each stands for.

Owns the names and codes (the C++ core raises the same classes) and how a wrong value is shown in a message. Knows
nothing of models.
"""

from __future__ import annotations

import reprlib


class KimiVLError(Exception):
    """Base class of every error raised on purpose. ``str(error)`` says what, where and what to do.

    code: stable, dotted, lower case ("gguf.truncated"); programs may rely on it, not on the message. param: the
    argument or field that is wrong, as "messages[0].content" or "images[2]", where that is known.
    """

    code: str
    param: str | None = None

    def __init__(self, message: str, code: str = "internal") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[KimiVLError], tuple[str, str], dict[str, str | None]]:
        return type(self), (str(self), self.code), {"param": self.param}  # both survive pickling (multiprocessing)


class BadModelFile(KimiVLError):
    """A model file that is not what it claims to be."""

    def __init__(self, message: str, code: str = "model_file.invalid") -> None:
        super().__init__(message, code)


class BadImage(KimiVLError):
    """Bytes that are not a picture, or a picture that cannot be encoded."""

    def __init__(self, message: str, code: str = "image.invalid") -> None:
        super().__init__(message, code)


class BadDocument(BadImage):
    """A document that cannot be opened, or whose pages cannot be drawn."""

    def __init__(self, message: str, code: str = "document.invalid") -> None:
        super().__init__(message, code)


class BadVideo(BadImage):
    """A video that cannot be opened or decoded."""

    def __init__(self, message: str, code: str = "video.invalid") -> None:
        super().__init__(message, code)


class BadRequest(KimiVLError, ValueError):
    """An argument of the caller that is wrong."""

    def __init__(self, message: str, code: str = "request.invalid") -> None:
        super().__init__(message, code)


class GroundingError(KimiVLError):
    """An answer that points at nothing in the picture."""

    def __init__(self, message: str, code: str = "grounding.no_point") -> None:
        super().__init__(message, code)


class AgentStopped(KimiVLError):
    """An agent that cannot go on, or must not."""

    def __init__(self, message: str, code: str = "agent.stopped") -> None:
        super().__init__(message, code)


class ContextFull(KimiVLError):
    """More tokens than the context has room for."""

    def __init__(self, message: str, code: str = "context.full") -> None:
        super().__init__(message, code)


class OutOfMemory(KimiVLError, MemoryError):
    """An allocation that failed, or that was refused because it would not fit."""

    def __init__(self, message: str, code: str = "memory.allocation") -> None:
        super().__init__(message, code)


class Cancelled(KimiVLError):
    """The caller asked to stop."""

    def __init__(self, message: str, code: str = "request.cancelled") -> None:
        super().__init__(message, code)


class Unsupported(KimiVLError):
    """Valid, but not implemented here."""

    def __init__(self, message: str, code: str = "unsupported") -> None:
        super().__init__(message, code)


EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BAD_MODEL_FILE = 3
EXIT_BAD_IMAGE = 4
EXIT_OUT_OF_MEMORY = 5
EXIT_CANCELLED = 130

EXIT_CODES: dict[type[BaseException], int] = {
    BadRequest: EXIT_USAGE,
    BadModelFile: EXIT_BAD_MODEL_FILE,
    BadImage: EXIT_BAD_IMAGE,
    OutOfMemory: EXIT_OUT_OF_MEMORY,
    MemoryError: EXIT_OUT_OF_MEMORY,
    Cancelled: EXIT_CANCELLED,
    KeyboardInterrupt: EXIT_CANCELLED,
}
"""The exit code of an exception class; a class not here has the code of its nearest base, else `EXIT_FAILED`."""


def exit_code(error: BaseException) -> int:
    """The process exit code for `error`: 1 for everything without an entry of its own in `EXIT_CODES`."""
    for cls in type(error).__mro__:
        if cls in EXIT_CODES:
            return EXIT_CODES[cls]
    return EXIT_FAILED


def shown(value: object) -> str:
    """A caller's value for a message: short whatever it is, and never an error itself."""
    try:
        return _short.repr(value)
    except Exception:  # an integer of too many digits, a broken __repr__
        return f"a value of type {type(value).__name__}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
