"""The tools' inner door to a model: ids and pixels in, embeddings and logits out, every call inside the model's lock.

What measures a model (quantize's importance and comparison) uses it, and so do `KimiVL.logits` and `generate`. Knows no
text, no chat and no stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .loaded import LoadedModel

Tick = Callable[[int, int], None]
"""tick(done, total): called between chunks of a call; an exception from it ends the call."""


class RawSession:
    """One fresh sequence of a model. n_positions: how many positions fit."""

    def __init__(self, loaded: LoadedModel, n_positions: int) -> None:
        """Raises OutOfMemory."""
        self._gate = loaded.gate
        self._session: _core.Session = self._gate.call(_core.Session, loaded.engine, n_positions, loaded.kv_type)

    def truncate(self, n_positions: int) -> None:
        """Forgets every position from n_positions on."""
        self._gate.call(self._session.truncate, n_positions)

    def prefill(
        self, parts: Sequence[NDArray[Any]], logits: Literal["none", "last", "all"], tick: Tick | None = None
    ) -> NDArray[np.float32] | None:
        """Appends parts: int32 [n] token ids or float32 [n, hidden_size] embeddings.

        logits: "all" returns float32 [n_positions, n_vocab], "last" [n_vocab], "none" nothing.
        """
        return self._gate.call(self._session.prefill, parts, logits, self._checked(tick))

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

    def _checked(self, tick: Tick | None) -> Tick:
        def checked(done: int, total: int) -> None:
            self._gate.check_running()
            if tick is not None:
                tick(done, total)

        return checked


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


class RawModel:
    """The core of an open model, call by call."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def session(self, n_positions: int) -> RawSession:
        """A fresh sequence of n_positions. Raises OutOfMemory."""
        return RawSession(self._loaded, n_positions)

    def encode_image(self, pixels: NDArray[np.uint8], tick: Tick | None = None) -> NDArray[np.float32]:
        """Processed pixels, uint8 [H, W, 3], through tower and projector: float32 [n_tokens, hidden_size]. Neither
        reads nor fills the image cache."""
        return self._loaded.gate.call(self._loaded.engine.encode_image, pixels, self._checked(tick))

    def vision_tower(self, pixels: NDArray[np.uint8], tick: Tick | None = None) -> NDArray[np.float32]:
        """Processed pixels through the tower alone: float32 [n_patches, vision_hidden_size]."""
        return self._loaded.gate.call(self._loaded.engine.vision_tower, pixels, self._checked(tick))

    def observe(self) -> Observation:
        """Begins to sum up what the weights are multiplied with, until the result is closed."""
        return Observation(self._loaded)

    def _checked(self, tick: Tick | None) -> Tick:
        def checked(done: int, total: int) -> None:
            self._loaded.gate.check_running()
            if tick is not None:
                tick(done, total)

        return checked
