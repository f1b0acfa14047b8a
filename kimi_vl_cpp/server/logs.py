"""The log: a line for every request and for what happens to the server, as text or as JSON, on standard error.

Never holds prompts, pictures, answers or keys. A log that cannot be written is given up; the server goes on.
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import msgspec

from ..wording import printable
from .context import Context


class Log:
    """as_json: one JSON object a line instead of text."""

    def __init__(self, as_json: bool = False) -> None:
        self._as_json = as_json

    def event(self, message: str, **fields: Any) -> None:
        """A line about the server itself."""
        if self._as_json:
            self._write(msgspec.json.encode({"time": round(time.time(), 3), "event": message, **fields}).decode())
        else:
            self._write(f"{_clock()} {message}{_spelled(fields)}")

    def request(self, context: Context) -> None:
        """The line of a request that has ended."""
        total_ms = round((time.perf_counter() - context.started) * 1000)
        head = {"id": context.request_id, "key": context.key or "-", "client": context.client}
        fields = {**head, **context.fields, "total_ms": total_ms}
        if self._as_json:
            row = {"method": context.method, "path": context.path, "status": context.status}
            self._write(msgspec.json.encode({"time": round(time.time(), 3), **row, **fields}).decode())
        else:
            self._write(f"{_clock()} {context.method} {context.path[:200]} {context.status}{_spelled(fields)}")

    def failure(self, context: Context, error: BaseException) -> None:
        """The traceback of a bug, under the request's id."""
        trace = "".join(traceback.format_exception(error))
        if self._as_json:
            self._write(msgspec.json.encode({"event": "error", "id": context.request_id, "trace": trace}).decode())
        else:
            for line in trace.rstrip().splitlines():
                self._write(f"{context.request_id} {line}")

    def _write(self, line: str) -> None:
        try:
            sys.stderr.write(printable(line, one_line=True) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # closed, a full disk, no standard error at all
            pass


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _spelled(fields: dict[str, Any]) -> str:
    return "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
