"""The pieces of an answer as the caller's generator: reading, closing, cancelling from another thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from ..checks import NotPicklable
from ..errors import Cancelled
from ..types import Piece, Progress, Response

if TYPE_CHECKING:
    from .generation import Generation


class PieceStream(NotPicklable, Generator[Piece, None, Response]):
    """The pieces of an answer, as a generator.

    Nothing is computed before the first `next()`. `close()` (or dropping the stream) cancels. `result` is the response
    once the stream has ended, by itself or by `close()` or Ctrl-C, and None before; it is also the generator's return
    value. `cancel()` may be called from any thread and ends the stream within about 100 ms; a stream that is read by
    one thread may be closed by another, which is then the same as `cancel()`.
    """

    _instead = "read it to its end here and send its result"

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._inner = generation.run()
        self._result: Response | None = None

    @property
    def result(self) -> Response | None:
        """The response, or None while the stream has not ended."""
        return self._result

    def again(self, seed: int, progress: Progress | None = None) -> PieceStream:
        """The stream of another answer to the same prompt, which is neither checked nor written again. It is not part
        of a conversation."""
        return PieceStream(self._generation.again(seed, progress))

    def begin(self) -> None:
        """Puts the request into the model's queue without waiting for anything: requests that begin before the first
        of them is read share one computation of a common prompt. Raises BadRequest like `KimiVL.chat`."""
        self._generation.begin()

    def cancel(self) -> None:
        """Asks the answer to end with finish_reason "cancelled"; what there is of it stays in `result`."""
        self._generation.cancel()

    def end_thinking(self) -> None:
        """Ends the reasoning at the next token, from any thread; the answer follows. Without effect on an answer that
        does not reason or has done so."""
        self._generation.end_thinking()

    @property
    def thinking_closed_by(self) -> str | None:
        """What ended the reasoning before the model did: "budget", "asked", "repetition", or None."""
        return self._generation.thinking_closed_by

    @property
    def seconds_left(self) -> float | None:
        """About how long it is until the first token, by the speed at which this model has computed so far and without
        what it does for others: before the first `next()`, from progress callbacks and from any thread. None before it
        has computed a prompt."""
        return self._generation.seconds_left

    @property
    def n_prompt(self) -> int:
        """Positions of the prompt."""
        return self._generation.request.n_prompt

    @property
    def n_image(self) -> int:
        """Positions of the prompt that are pictures."""
        return self._generation.request.n_image

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Of every picture of the prompt, what it is cached under and the position behind it."""
        placed = self._generation.request.positions.pictures
        return [(picture.digest, start + picture.n_tokens) for start, picture in placed]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The token ids of the prompt, -1 for every position of a picture."""
        return tuple(self._generation.request.positions.tokens(0))

    @property
    def seed(self) -> int:
        """The seed in use."""
        return self._generation.request.params.seed

    @property
    def notices(self) -> list[str]:
        """What the caller should know about how the request was understood."""
        return list(self._generation.request.notices)

    def add_notices(self, notices: Iterable[str]) -> None:
        """Adds what is known about the request beside what it was built from."""
        self._generation.request.notices.extend(notices)

    def send(self, value: None) -> Piece:
        try:
            return self._inner.send(value)
        except StopIteration as end:
            if self._result is None:
                self._result = end.value
            raise StopIteration(self._result) from None
        except (KeyboardInterrupt, Cancelled):
            self._result = self._generation.response()
            raise

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Piece:
        error = typ if isinstance(typ, BaseException) else typ()
        try:
            return self._inner.throw(error)
        finally:
            if self._result is None:
                self._result = self._generation.response()

    def close(self) -> None:
        """Ends the answer if it has not ended."""
        self._generation.cancel()
        try:
            self._inner.close()
        except ValueError:  # another thread is inside: it ends at its next token
            return
        if self._result is None:
            self._result = self._generation.response()

    def drain(self) -> Response:
        """Reads the rest of the pieces and returns the response."""
        try:
            while True:
                self.send(None)
        except StopIteration as end:
            response: Response = end.value
            return response

    def __del__(self) -> None:
        inner = getattr(self, "_inner", None)
        if inner is not None:
            self._generation.cancel()
            try:
                inner.close()
            except ValueError:
                return
