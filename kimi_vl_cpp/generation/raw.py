"""The tools' inner door to a model: ids and pixels in, embeddings and logits out, every call inside the model's lock.

What measures a model (quantize's importance and comparison, the benchmark) uses it, and so do `KimiVL.logits` and
`generate`. Knows no text, no chat and no stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..scheduler.gate import Gate
from .adapters import index_of

if TYPE_CHECKING:
    from .loaded import LoadedModel

Tick = Callable[[int, int], None]
"""tick(done, total): called between chunks of a call; an exception from it ends the call."""


class RawSession:
    """One sequence of a model; `RawCore.session` makes it."""

    def __init__(self, session: _core.Session, gate: Gate) -> None:
        self._session = session
        self._gate = gate

    def truncate(self, n_positions: int) -> None:
        """Forgets every position from n_positions on."""
        self._gate.call(self._session.truncate, n_positions)

    def fork(self) -> RawSession:
        """The same positions for another sequence, on the same memory until one of them goes on."""
        return RawSession(self._gate.call(self._session.fork), self._gate)

    def prefill(
        self, parts: Sequence[NDArray[Any]], logits: Literal["none", "last", "all"], tick: Tick | None = None
    ) -> NDArray[np.float32] | None:
        """Appends parts: int32 [n] token ids or float32 [n, hidden_size] embeddings.

        logits: "all" returns float32 [n_positions, n_vocab], "last" [n_vocab], "none" nothing.
        """
        return self._gate.call(self._session.prefill, parts, logits, _checked(self._gate, tick))

    def sample(self, sampler: _core.Sampler) -> int:
        """A token by the logits of the last position."""
        return self._gate.call(self._session.sample, sampler)

    def decode(self, token: int) -> None:
        """Appends one token, which `sample` may follow."""
        self._gate.call(self._session.decode, token)

    def tokens(self, sampler: _core.Sampler) -> Iterator[int]:
        """The tokens that follow, without end. A token is decoded when the one after it is asked for."""
        token = self.sample(sampler)

        def following(previous: int) -> int:
            self._session.decode(previous)
            return self._session.sample(sampler)

        while True:
            yield token
            token = self._gate.call(following, token)


class Observation:
    """Sums of squares of what every weight of a model is multiplied with, from its making to `close()`. What requests
    compute meanwhile is summed up too; it neither fills the KV cache nor comes from there."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._importance = loaded.conductor.observe(lambda: _core.Importance(loaded.engine))
        self._open = True

    def sums(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Tensor name -> (sums [n_matrices, n_cols], counts [n_matrices])."""
        return self._importance.sums()

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Tensor name -> how many rows each matrix was multiplied with."""
        return self._importance.counts()

    def close(self) -> None:
        """Ends the observing."""
        if self._open:
            self._open = False
            if self._loaded.gate.closed:
                self._importance.close()
            else:
                self._loaded.conductor.observed(self._importance.close)


class RawCore:
    """The core of a model, call by call. engine: for what it says of itself; what computes goes through the methods."""

    adapter = -1  # the core's number of the adapter that counts where a call names none

    def __init__(self, engine: _core.Engine, gate: Gate, kv_type: str) -> None:
        self.engine = engine
        self._gate = gate
        self._kv_type = kv_type

    @classmethod
    def open(cls, text: Path, mmproj: Path | None, *, n_threads: int, isa: str, kv_type: str) -> RawCore:
        """The files of a model without its tokenizer. n_threads 0: automatic. Raises BadModelFile, BadRequest."""
        engine = _core.Engine(str(text), None if mmproj is None else str(mmproj), n_threads, isa)
        return cls(engine, Gate(engine.close), kv_type)

    def close(self) -> None:
        """Frees everything; waits for the call that is running."""
        self._gate.close()

    def session(self, n_positions: int, n_forks: int = 0, adapter: int | None = None) -> RawSession:
        """A fresh sequence with room for n_positions, and for as many in each of n_forks. adapter: of the core, -1 for
        none. Raises OutOfMemory."""
        pool = None
        if n_forks:
            page_bytes = _core.PAGE_POSITIONS * self.engine.kv_bytes_per_token(self._kv_type)
            n_pages = (-(-n_positions // _core.PAGE_POSITIONS) + 1) * (1 + n_forks)
            pool = self._gate.call(_core.PagePool, self.engine, n_pages * page_bytes, self._kv_type)
        adapter = self.adapter if adapter is None else adapter
        session = self._gate.call(_core.Session, self.engine, n_positions, self._kv_type, pool, adapter)
        return RawSession(session, self._gate)

    def decode(self, rows: Sequence[tuple[RawSession, int]]) -> None:
        """Appends one token to each of several sequences, in one step."""
        step = [(session._session, token, None) for session, token in rows]
        for outcome in self._gate.call(self.engine.decode, step):
            if isinstance(outcome, Exception):
                raise outcome

    def encode_image(self, pixels: NDArray[np.uint8], tick: Tick | None = None) -> NDArray[np.float32]:
        """Processed pixels, uint8 [H, W, 3], through tower and projector: float32 [n_tokens, hidden_size]. Neither
        reads nor fills the image cache."""
        return self._gate.call(self.engine.encode_image, pixels, _checked(self._gate, tick), self.adapter)

    def vision_tower(self, pixels: NDArray[np.uint8], tick: Tick | None = None) -> NDArray[np.float32]:
        """Processed pixels through the tower alone: float32 [n_patches, vision_hidden_size]."""
        return self._gate.call(self.engine.vision_tower, pixels, _checked(self._gate, tick), self.adapter)


class RawModel(RawCore):
    """The core of an open model."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.engine, loaded.gate, loaded.kv_type)
        self.adapter = index_of(loaded.adapters.always)
        self._loaded = loaded

    def observe(self) -> Observation:
        """Begins to sum up what the weights are multiplied with, until the result is closed."""
        return Observation(self._loaded)


def _checked(gate: Gate, tick: Tick | None) -> Tick:
    def checked(done: int, total: int) -> None:
        gate.check_running()
        if tick is not None:
            tick(done, total)

    return checked
