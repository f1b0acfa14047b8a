"""Weights from a source through the encoders into an output file, a few pieces at a time.

One thread reads ahead, the caller's thread encodes (on as many threads as it was given), one thread writes behind. At
most a handful of pieces of `PIECE_ELEMS` elements are in memory, whatever the size of the model. The bytes do not
depend on threads: every piece is encoded on its own and its place is known before.
"""

from __future__ import annotations

import re
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimi_vl_cpp.adapters.change import Changes, add_changes
from kimi_vl_cpp.errors import BadModelFile, BadRequest, KimiVLError
from kimi_vl_cpp.files.stored import FLOAT_TYPES, Rows, SourceTensor, read_rows

from ..blocks import Importance, blocks, decode, encode, n_bytes
from ..source.source import Source
from ..source.tensor_map import Part
from .layout import PlannedTensor
from .write import OutputFile

PIECE_ELEMS = 4 << 20
AHEAD = 2  # pieces read before they are needed, and encoded before they are written


@dataclass(frozen=True)
class Piece:
    """Rows of one matrix of a planned tensor and where their blocks go. first_row: of the tensor."""

    tensor: PlannedTensor
    part: Part
    offset: int
    first_row: int
    is_last: bool


@dataclass(frozen=True)
class _Raw:
    """Blocks that are copied as they are."""

    data: NDArray[np.uint8]


def pieces_of(tensor: PlannedTensor) -> Iterator[Piece]:
    """A tensor in pieces, in order, covering its bytes exactly."""
    offset, row, n_cols = tensor.offset, 0, tensor.target.shape[-1]
    found = [piece for part in tensor.target.parts for piece in part.pieces(PIECE_ELEMS)]
    for i, part in enumerate(found):
        yield Piece(tensor, part, offset, row, i == len(found) - 1)
        n_elems = part.n_rows * part.n_cols
        offset += n_bytes(tensor.type, n_elems)
        row += n_elems // n_cols
    assert offset == tensor.offset + tensor.n_bytes, tensor.target.name


def stream(
    source: Source,
    output: OutputFile,
    n_threads: int,
    advance: Callable[[str, int], None],
    importance: Importance | None = None,
    changes: Changes | None = None,
) -> None:
    """Writes what `output` still lacks. advance(name, elements) is called in this thread after every encoded piece.

    changes: of adapters, merged in float32 before the weights are encoded.

    Raises what reading and writing raise, BadModelFile "checkpoint.not_finite" for NaN and infinity, BadRequest
    "quantize.overflow" for a number that F16 cannot hold, and whatever `advance` raises.
    """
    left = output.layout.tensors[output.n_done :]
    pieces = (piece for tensor in left for piece in pieces_of(tensor))
    behind = _WriteBehind(output)
    reads: deque[tuple[Piece, Future[Rows | _Raw]]] = deque()
    with (
        _signals_between_pieces() as deliver,
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        writes: deque[Future[None]] = deque()
        try:
            while True:
                deliver()
                while len(reads) <= AHEAD and (piece := next(pieces, None)) is not None:
                    reads.append((piece, reader.submit(_read, source, piece, changes or {})))
                if not reads:
                    break
                piece, future = reads.popleft()
                data = _encoded(source, piece, future.result(), n_threads, importance)
                if len(writes) > AHEAD:
                    writes.popleft().result()
                writes.append(writer.submit(behind.write, piece, data))
                advance(piece.tensor.target.name, piece.part.n_rows * piece.part.n_cols)
            for future_write in writes:
                deliver()
                future_write.result()
        except BaseException:
            behind.stop()
            for _, read in reads:
                read.cancel()
            raise


@contextmanager
def _signals_between_pieces() -> Iterator[Callable[[], None]]:
    """Handlers of SIGINT and SIGTERM that are Python's run where the yielded function is called, and at the end. What
    they raise in the middle of a queue's or a future's own work can leave its lock held, and then nothing ends."""
    waiting: deque[tuple[int, FrameType | None]] = deque()
    before: dict[int, Any] = {}

    def deliver() -> None:
        while waiting:
            number, frame = waiting.popleft()
            before[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # no other gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, lambda number, frame: waiting.append((number, frame)))
    try:
        yield deliver
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
        deliver()


class _WriteBehind:
    """Runs in the writing thread: pieces to the file, checksums to the journal."""

    def __init__(self, output: OutputFile) -> None:
        self._output = output
        self._checksum = 0
        self._failed = False
        self._stopped = False

    def stop(self) -> None:
        """What was not begun is no longer written."""
        self._stopped = True

    def write(self, piece: Piece, data: NDArray[np.uint8]) -> None:
        if self._failed or self._stopped:  # a gap before this piece: nothing after it may look complete
            self._failed = True
            return
        self._failed = True
        self._output.write(piece.offset, data.data)
        self._checksum = zlib.crc32(data.data, self._checksum)
        if piece.is_last:
            self._output.tensor_done(self._checksum)
            self._checksum = 0
        self._failed = False


def _read(source: Source, piece: Piece, changes: Changes) -> Rows | _Raw:
    part = piece.part
    tensor = source.tensors[part.source]
    own = changes.get(piece.tensor.target.name)
    if own:
        merged = float_rows(source, part)
        merged = np.ascontiguousarray(merged.T) if part.transposed else merged
        add_changes(own, piece.first_row, merged)
        return merged
    if tensor.type not in FLOAT_TYPES:
        raw = _read_blocks(tensor, part)
        if tensor.type == piece.tensor.type and not part.transposed:
            return _Raw(raw)
        rows: Rows = decode(tensor.type, raw, part.n_rows * part.n_cols).reshape(part.n_rows, part.n_cols)
    else:
        rows = read_rows(tensor, part.first, part.n_rows, part.n_cols)
    return np.ascontiguousarray(rows.T) if part.transposed else rows


def float_rows(source: Source, part: Part) -> NDArray[np.float32]:
    """float32 [n_rows, n_cols] of a part as it is stored, before it is transposed."""
    tensor = source.tensors[part.source]
    if tensor.type not in FLOAT_TYPES:
        raw = _read_blocks(tensor, part)
        return decode(tensor.type, raw, part.n_rows * part.n_cols).reshape(part.n_rows, part.n_cols)
    rows = read_rows(tensor, part.first, part.n_rows, part.n_cols)
    if tensor.type == "BF16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def _read_blocks(tensor: SourceTensor, part: Part) -> NDArray[np.uint8]:
    elems, size = blocks()[tensor.type]
    row_bytes = part.n_cols // elems * size
    return tensor.file.read(tensor.offset + part.first * row_bytes, part.n_rows * row_bytes)


def _encoded(
    source: Source, piece: Piece, rows: Rows | _Raw, n_threads: int, importance: Importance | None
) -> NDArray[np.uint8]:
    if isinstance(rows, _Raw):
        return rows.data
    try:
        return encode(piece.tensor.type, rows, n_threads, _weights(piece, importance)).reshape(-1)
    except BadRequest as error:
        raise _explained(error, source.tensors[piece.part.source], piece) from None


def _weights(piece: Piece, importance: Importance | None) -> NDArray[np.float32] | None:
    """float32 [n_cols]: the importance of the columns of a piece's matrix, where it is known and of use."""
    target = piece.tensor.target
    if importance is None or blocks()[piece.tensor.type][0] == 1:
        return None
    found = importance.rows(target.name)
    if found is None or found.size == target.shape[-1]:
        return found
    columns: NDArray[np.float32] = found.reshape(-1, target.shape[-1])[piece.first_row // target.shape[-2]]
    return columns


def _explained(error: BadRequest, tensor: SourceTensor, piece: Piece) -> KimiVLError:
    """What the encoder says about rows of a piece, with file and tensor, and the place counted in the source's rows."""

    def in_source(found: re.Match[str]) -> str:
        row, column = int(found[1]), int(found[2])
        if piece.part.transposed:
            row, column = column, row
        return f"row {piece.part.first + row}, column {column}"

    what = re.sub(r"row (\d+), column (\d+)", in_source, str(error), count=1)
    where = f"{tensor.file.path}: tensor {tensor.name}: {what}"
    if error.code == "quant.not_finite":
        return BadModelFile(f"{where}: download the file again", "checkpoint.not_finite")
    if error.code == "quant.overflow":
        return BadRequest(f"{where} for {piece.tensor.target.name}", "quantize.overflow")
    return BadRequest(where, error.code)
