"""The command line: `kimi-vl run`, `chat`, `read`, `point`, `scenes`, `serve`, `batch`, `eval`, `bench`, `inspect`,
`quantize`, `imatrix`, `compare`, `doctor`.

Owns what a user types and reads at a terminal, and the exit codes (exits.py). Knows the model only through the
public Python API.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, whose import would leave time for a Ctrl-C before main() can catch it
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit code of the process. Never lets an exception
    out."""
    try:
        from . import app

        code = app.main(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of our output has seen enough: `kimi-vl run … | head -1`
        code = _quiet_pipe()
    except KeyboardInterrupt:  # while the commands were being imported
        code = 130
    return _flush(code)


def _flush(code: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _quiet_pipe()
    except (OSError, ValueError):
        return code or 1
    return code


def _quiet_pipe() -> int:
    """Points standard output at nothing, so that the interpreter's last flush does not complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
    return 0
