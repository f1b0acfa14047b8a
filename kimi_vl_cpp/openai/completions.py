"""Chat completions in the shapes of OpenAI's API, as users of llama-cpp-python know them: whole answers and chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ..checks import NotPicklable
from ..generation.several import answers_to, read_together
from ..generation.stream import PieceStream
from ..media.processor import ProcessedImage
from ..types import Response
from .choices import ChoiceChunks, ChoiceStyle, choice_of
from .messages import translate_messages
from .options import read_options, refuse_unknown
from .shapes import TokenBytes, new_id, usage_of
from .types import ChatCompletion, ChatCompletionChunk, ChunkChoice
from .videos import VideoPart


class ChatCompletionStream(NotPicklable, Generator[ChatCompletionChunk, None, None]):
    """The chunks of an answer, as a generator. `close()` cancels; `cancel()` does so from another thread. `result` is
    the Response once it has ended, of several choices that of the last."""

    _instead = "read it to its end here and send its chunks or its result"

    def __init__(self, streams: Sequence[PieceStream], chunks: Generator[ChatCompletionChunk, None, None]) -> None:
        self._streams = streams
        self._inner = chunks

    @property
    def result(self) -> Response | None:
        """The answer as `KimiVL.chat` would have returned it, or None while the stream has not ended."""
        return self._streams[-1].result

    def cancel(self) -> None:
        """Asks the answer to end with finish_reason "cancelled"."""
        for stream in self._streams:
            stream.cancel()

    def send(self, value: None) -> ChatCompletionChunk:
        return self._inner.send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> ChatCompletionChunk:
        return self._inner.throw(typ if isinstance(typ, BaseException) else typ())

    def close(self) -> None:
        """Ends the answer if it has not ended."""
        for stream in self._streams:
            stream.close()
        try:
            self._inner.close()
        except ValueError:  # another thread is inside: it ends at its next token
            return


def create(
    start: Callable[..., PieceStream],
    token_bytes: TokenBytes,
    model_name: str,
    messages: Sequence[Mapping[str, Any]],
    frames: Callable[[VideoPart, bool], tuple[list[ProcessedImage], list[str]]],
    /,
    *,
    allow_local_images: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> ChatCompletion | ChatCompletionStream:
    """Answers `messages`, a list of {"role", "content"} dicts, with the streams that `start` returns: `KimiVL.start`.

    role: system (developer is the same), user, assistant, or tool with the result of a call.
    content: a string, or a list of {"type": "text", "text"}, {"type": "image_url", "image_url": {"url"} or url} and
    {"type": "image", "image": picture} parts, in the order in which the model is to see them. url: a data: URL; with
    allow_local_images also a path or a file: URL. http and https are refused: fetch the picture and pass its bytes.
    file and video_url parts are as in docs/server.md.
    An assistant's reasoning_content goes back into its message. partial: true in the last message, an assistant's, has
    it continued.

    options: max_tokens or max_completion_tokens, temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n,
    frequency_penalty, presence_penalty, logit_bias, seed, stop, n, logprobs, top_logprobs, tools, tool_choice,
    parallel_tool_calls, reasoning_effort and the other fields of docs/server.md; model is the name that the answer
    carries. None is the default. Others of OpenAI's options are accepted with values that ask for nothing.

    Returns a dict, or with stream=True a generator of chunks. Nothing is computed before its first chunk is asked for,
    but everything is checked here.

    Raises BadRequest (code "request.<field>", the message names the place), Unsupported, BadImage, ContextFull.
    """
    started = time.perf_counter()
    read = read_options(options)
    refuse_unknown(read)
    translated = translate_messages(
        messages,
        allow_local_images=allow_local_images,
        continue_final=read.continue_final,
        open_video=lambda part: frames(part, allow_local_images),
    )
    with translated.placing_errors():
        first = start(
            translated.messages,
            translated.images,
            progress=progress,
            started=started,
            continue_final=translated.continue_final,
            tools=read.tools,
            **read.sampling,
        )
    streams = answers_to(first, read.n, progress)
    head = {"id": new_id(), "created": int(time.time()), "model": read.model or model_name}
    style = ChoiceStyle(
        token_bytes,
        tools=read.tools is not None,
        logprobs=read.logprobs,
        token_ids=read.return_token_ids,
        exclude=read.reasoning.exclude,
    )
    if read.stream:
        return ChatCompletionStream(streams, _chunks(streams, head, read.include_usage, style))
    responses = read_together(streams)
    choices = [choice_of(response, index, style) for index, response in enumerate(responses)]
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage_of(responses)}  # type: ignore[return-value]


def _chunks(
    streams: Sequence[PieceStream], head: Mapping[str, Any], include_usage: bool, style: ChoiceStyle
) -> Generator[ChatCompletionChunk, None, None]:
    """The chunks of all choices, which are read in turn so that they are decoded together."""

    def bare(choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return {**head, "object": "chat.completion.chunk", "choices": choices}  # type: ignore[typeddict-item]

    for stream in streams:
        stream.begin()
    running = [(stream, ChoiceChunks(index, style)) for index, stream in enumerate(streams)]
    opened: set[PieceStream] = set()
    while running:
        for stream, chunks in list(running):
            piece = next(stream, None)  # before the role: an error is then an error, not half an answer
            if stream not in opened:
                opened.add(stream)
                yield bare([chunks.opening()])
            if piece is not None:
                yield from (bare([choice]) for choice in chunks.piece(piece))
                continue
            running.remove((stream, chunks))
            assert stream.result is not None
            yield from (bare([choice]) for choice in chunks.end(stream.result))
    if include_usage:
        yield {**bare([]), "usage": usage_of([stream.result for stream in streams if stream.result is not None])}
