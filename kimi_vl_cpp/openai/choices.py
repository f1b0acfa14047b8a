"""One answer as a choice of a chat completion, whole or as the choices of its chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..text.tool_calls import OPENING as CALL_OPENING
from ..text.tool_calls import CallPiece
from ..types import Piece, Response, TokenLogprob
from .said import AnswerReader, Called, answer_reason, read_answer
from .shapes import TokenBytes, logprobs_of
from .types import ChatMessage, Choice, ChunkChoice


@dataclass(frozen=True)
class ChoiceStyle:
    """How a choice is written. token_bytes: a token's bytes by its id. tools: the answer may call functions. logprobs,
    token_ids: whether these are part of it. exclude: the reasoning is left out. reasoning_field: its key."""

    token_bytes: TokenBytes
    tools: bool = False
    logprobs: bool = False
    token_ids: bool = False
    exclude: bool = False
    reasoning_field: str = "reasoning_content"


def choice_of(response: Response, index: int, style: ChoiceStyle) -> Choice:
    """A whole answer."""
    said = read_answer(response.text, style.tools)
    message: ChatMessage = {"role": "assistant", "content": said.content, "refusal": None}
    if said.calls:
        message["tool_calls"] = [call.as_dict() for call in said.calls]
        message["content"] = said.content or None
    if response.thinking and not style.exclude:
        message[style.reasoning_field] = response.thinking  # type: ignore[literal-required]
    logprobs = _before_calls(response.logprobs, style) if said.calls else response.logprobs
    choice: Choice = {
        "index": index,
        "message": message,
        "logprobs": logprobs_of(logprobs, style.token_bytes) if style.logprobs else None,
        "finish_reason": answer_reason(response, said),
    }
    if style.token_ids:
        choice["token_ids"] = list(response.token_ids)
    return choice


def _before_calls(logprobs: Sequence[TokenLogprob], style: ChoiceStyle) -> Sequence[TokenLogprob]:
    """Those of the tokens that begin before the first call."""
    raw = [style.token_bytes(one.token_id) for one in logprobs]
    end = b"".join(raw).find(CALL_OPENING.encode())
    n, start = 0, 0
    while n < len(raw) and start < end:
        start += len(raw[n])
        n += 1
    return logprobs[:n]


class ChoiceChunks:
    """The chunks of one answer: `opening`, then those of every piece, then `end`."""

    def __init__(self, index: int, style: ChoiceStyle) -> None:
        self._index = index
        self._style = style
        self._reader = AnswerReader(style.tools)
        self._logprobs: list[TokenLogprob] = []  # of the content, not carried by a chunk yet
        self._ids: list[int] = []
        self._n_carried = 0

    def opening(self) -> ChunkChoice:
        """The first one."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> list[ChunkChoice]:
        """Those of a piece."""
        self._ids += piece.token_ids
        if piece.kind == "thinking":
            return [] if self._style.exclude else [self._carrying({self._style.reasoning_field: piece.text})]
        self._logprobs += piece.logprobs
        return [self._carrying(delta) for delta in self._deltas(self._reader.push(piece.text))]

    def end(self, response: Response) -> list[ChunkChoice]:
        """The last ones."""
        chunks = [self._carrying(delta) for delta in self._deltas(self._reader.flush())]
        last = self._chunk({})
        last["finish_reason"] = answer_reason(response, self._reader.said)
        if self._style.token_ids:
            last["token_ids"] = list(response.token_ids[self._n_carried :])  # also of tokens without any text
        return [*chunks, last]

    def _deltas(self, pieces: list[CallPiece]) -> Iterator[dict[str, Any]]:
        calls = self._reader.said.calls
        index = len(calls) - sum(piece.kind == "call" for piece in pieces) - 1
        for piece in pieces:
            index += piece.kind == "call"
            if piece.kind == "text":
                yield {"content": piece.text}
            elif piece.kind == "call":
                yield {"tool_calls": [{"index": index, **Called(calls[index].id, piece.text).as_dict()}]}
            elif piece.kind == "arguments":
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]}

    def _carrying(self, delta: dict[str, Any]) -> ChunkChoice:
        """A chunk with the log probabilities and token ids that have come since the one before."""
        chunk = self._chunk(delta)
        if "content" in delta and self._style.logprobs:
            chunk["logprobs"] = logprobs_of(self._logprobs, self._style.token_bytes)
        self._logprobs = []
        if self._style.token_ids:
            chunk["token_ids"] = self._ids
        self._n_carried += len(self._ids)
        self._ids = []
        return chunk

    def _chunk(self, delta: Any) -> ChunkChoice:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}
