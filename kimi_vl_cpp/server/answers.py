"""An answer under way, from its request to its response: what chat completions and completions share.

Owns the order of steps (places in the queue, preparing, waiting, streaming), the fields that every answer has beside
OpenAI's (`timings`, `kimi`) and the log's figures. The shapes of choices are the
endpoints' own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from ..errors import Cancelled
from ..generation.several import answer_seed
from ..openai.fields import bad
from ..types import FinishReason, Piece, Response
from .chat_request import ChatRequest
from .context import Context, context_of
from .engine import Engine
from .runs import Event, Run
from .sse import OPENAI, EventStream, Framing, LateJson, or_left
from .state import State, state_of

if TYPE_CHECKING:
    from ..generation.stream import PieceStream

Prepare = Callable[[int, Callable[[str, int, int], None], int | None], "PieceStream"]
"""prepare(number, progress, seed): checks a request and returns the stream of the first answer to prompt `number`."""


@dataclass
class Answer:
    """n answers to one request, per_prompt of them to each of its prompts.

    id: what the client knows it by. notices: what it should know. images: what is known of its pictures.
    """

    request: Request
    id: str
    n: int
    seed: int | None
    notices: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    per_prompt: int = 1
    created: int = field(default_factory=lambda: int(time.time()))
    responses: dict[int, Response] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state: State = state_of(self.request)
        self.context: Context = context_of(self.request)
        self.engine: Engine = self.state.ready
        self.runs: list[Run] = []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._encoded: list[bool] = []

    async def start_chat(self, asked: ChatRequest, *, progress: bool = False) -> None:
        """`start` of a chat request, whose pictures may have to be fetched."""

        async def prepared() -> list[PieceStream]:
            await asked.read()
            return self._prepare(lambda number, progress, seed: asked.stream(progress))

        await self._start(prepared, progress)
        self.images += asked.images
        self.notices += asked.notices

    async def start(self, prepare: Prepare, *, progress: bool = False) -> None:
        """Checks the request and puts it into the queue. Raises KimiVLError, ClientLeft."""
        await self._start(lambda: self.engine.prepare(lambda: self._prepare(prepare)), progress)

    async def _start(self, prepared: Callable[[], Awaitable[list[PieceStream]]], progress: bool) -> None:
        most = self.state.settings.max_running
        if self.per_prompt > most:
            raise bad("n", f"got {self.per_prompt}, but this server computes {most} answers at once")
        self.runs, self._events = self.engine.admit(self.id, self.context.key, self.n)
        try:
            for run in self.runs:
                run.wants_progress = progress
            streams = await or_left(self.request.receive, prepared())
        except BaseException:
            self.engine.release(self.id)
            raise
        first = streams[0]
        self.seed = first.seed
        self._encoded = [self.engine.is_encoded(key) for key, _ in first.pictures]
        self.notices += first.notices
        self.context.fields |= {"prompt": first.n_prompt, "image": first.n_image}
        for run, stream in zip(self.runs, streams, strict=True):
            self.engine.enqueue(run, stream)
        if self.state.settings.timeout:
            elapsed = time.perf_counter() - self.context.started
            delay = max(0.0, self.state.settings.timeout - elapsed)
            self._timer = asyncio.get_running_loop().call_later(delay, self.end, "timeout")

    def _prepare(self, prepare: Prepare) -> list[PieceStream]:
        """The streams of all answers. Each draws from a seed of its own, known from the first."""
        streams: list[PieceStream] = []
        for run in self.runs:
            number, index = divmod(run.index, self.per_prompt)
            if index:
                first = streams[number * self.per_prompt]
                streams.append(first.again(answer_seed(first.seed, index), run.progress))
            else:
                streams.append(prepare(number, run.progress, streams[0].seed if streams else self.seed))
        return streams

    def end(self, reason: str) -> None:
        """Ends all of it."""
        for run in self.runs:
            run.end(reason)

    def release(self) -> None:
        """To be called once at the end, however it came."""
        if self._timer is not None:
            self._timer.cancel()
        self.engine.release(self.id)
        self._note_figures()

    # Reading it

    async def events(self) -> AsyncGenerator[tuple[Run, Event], None]:
        """The events of all runs, to the last response. Raises what a run raised."""
        open_runs = len(self.runs)
        while open_runs:
            index, happened = await self._events.get()
            run = self.runs[index]
            if isinstance(happened, BaseException):
                raise happened
            if isinstance(happened, Response):
                open_runs -= 1
                self.responses[index] = happened
            yield run, happened
            if isinstance(happened, Piece):
                run.taken(happened)

    async def whole(self) -> list[Response]:
        """All responses, in the order of the choices."""
        async for _ in self.events():
            pass
        return [self.responses[index] for index in range(self.n)]

    def late_json(self, body: Callable[[list[Response]], Mapping[str, Any]]) -> LateJson:
        """A response with the JSON that `body` makes of the responses."""

        async def made() -> Mapping[str, Any]:
            return body(await self.whole())

        settings = self.state.settings
        return LateJson(made(), ping_s=settings.ping, at_end=self.release, headers=self._headers())

    def event_stream(
        self,
        chunks: Callable[[Run, Event], list[dict[str, Any]]],
        last: Callable[[], list[dict[str, Any]]],
        framing: Framing = OPENAI,
    ) -> EventStream:
        """A response with the chunks that `chunks` makes of every event, then those of `last`."""
        settings = self.state.settings
        return EventStream(
            self._written(chunks, last, framing),
            ping_s=settings.ping,
            stall_s=settings.slow_client,
            at_end=self.release,
            headers=self._headers(),
            framing=framing,
        )

    async def _written(
        self,
        chunks: Callable[[Run, Event], list[dict[str, Any]]],
        last: Callable[[], list[dict[str, Any]]],
        framing: Framing,
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for run, happened in self.events():
                data = b"".join(framing.frame(chunk) for chunk in chunks(run, happened))
                if isinstance(happened, Response) and run.end_reason == "shutdown":
                    yield data
                    raise Cancelled("the server is shutting down", "serve.shutdown")
                if data:
                    yield data
        except Exception as error:
            code = getattr(error, "code", "")
            self.context.fields["code"] = code or "internal"
            if not code:
                self.state.log.failure(self.context, error)
            yield framing.failure(error)
            return
        yield b"".join(framing.frame(chunk) for chunk in last()) + framing.end

    def _headers(self) -> dict[str, str]:
        ignored = self.context.fields.get("ignored")
        return {"x-kimi-vl-ignored": ignored} if ignored else {}

    # What it says beside the answer

    def ended(self, response: Response) -> Response:
        """A response whose finish reason is one of OpenAI's: an answer that was ended from outside is "length"."""
        cancelled = response.finish_reason == "cancelled"
        return dataclasses.replace(response, finish_reason="length") if cancelled else response

    def finish_reason(self, response: Response) -> FinishReason:
        """Why an answer ended, in OpenAI's words."""
        return self.ended(response).finish_reason

    def stop_reason(self, run: Run, response: Response) -> str | None:
        """What ended an answer that neither the model nor max_tokens did."""
        return run.end_reason if response.finish_reason == "cancelled" else response.stop_reason

    def timings(self, response: Response, run: Run) -> dict[str, Any]:
        """Where the time went, with llama.cpp's names; milliseconds."""
        usage, timings = response.usage, response.timings
        n_new = usage.prompt_tokens - usage.cached_tokens
        first_ms = (run.first_token - run.arrived) * 1000 if run.first_token else 0.0
        return {
            "cache_n": usage.cached_tokens,
            "prompt_n": n_new,
            "prompt_ms": round(timings.prefill_s * 1000, 3),
            "prompt_per_second": round(timings.prefill_tps, 3),
            "predicted_n": usage.completion_tokens,
            "predicted_ms": round(timings.decode_s * 1000, 3),
            "predicted_per_second": round(timings.decode_tps, 3),
            "queue_ms": round(run.queue_s * 1000, 3),
            "encode_ms": round(timings.encode_s * 1000, 3),
            "first_token_ms": round(first_ms, 3),
        }

    def kimi(self, response: Response, run: Run) -> dict[str, Any]:
        """What only this server says."""
        return {
            "seed": response.seed,
            "notices": self.notices,
            "images": self._images(response, run),
            "stop_reason": self.stop_reason(run, response),
            "stop_string": response.stop_string,
        }

    def _images(self, response: Response, run: Run) -> list[dict[str, Any]]:
        """What is known of the pictures. cached: "kv" where their positions were held already, "embedding" where they
        had been encoded, else None."""
        if run.stream is None or not self.images:
            return []
        found = []
        for image, (_, end), encoded in zip(self.images, run.stream.pictures, self._encoded, strict=True):
            held = "kv" if end <= response.usage.cached_tokens else "embedding" if encoded else None
            found.append({**image, "cached": held})
        return found

    def _note_figures(self) -> None:
        if not self.responses:
            reason = self.runs[0].end_reason if self.runs else None
            self.context.fields.setdefault("finish", reason or "-")
            return
        first = self.responses[min(self.responses)]
        reasons = {self.stop_reason(self.runs[i], one) or one.finish_reason for i, one in self.responses.items()}
        self.context.fields |= {
            "finish": ",".join(sorted(reasons)),
            "cached": first.usage.cached_tokens,
            "completion": sum(one.usage.completion_tokens for one in self.responses.values()),
            "queue_ms": round(self.runs[0].queue_s * 1000),
            "encode_ms": round(first.timings.encode_s * 1000),
            "prefill_ms": round(first.timings.prefill_s * 1000),
            "decode_ms": round(first.timings.decode_s * 1000),
            "tps": round(first.timings.decode_tps, 1),
        }
