"""`POST /v1/completions`: what follows a text or token ids, without the chat template."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.types import ASGIApp

from ..openai.shapes import new_id
from ..openai.text_completions import LegacyLogprobs, TextRequest, logprobs_of_answer, read_text_request
from ..types import Piece, Response
from .answers import Answer
from .bodies import read_object
from .chat_completions import note_ignored
from .chat_request import apply_settings
from .runs import Event, Run
from .state import State, state_of

if TYPE_CHECKING:
    from ..generation.stream import PieceStream


async def completions(request: Request) -> ASGIApp:
    """Continues one prompt or several."""
    state = state_of(request)
    state.check_ready()
    body = await read_object(request)
    asked = read_text_request(body)
    apply_settings(state, asked.options, body)
    n = asked.options.n
    answer = Answer(request, new_id("cmpl"), n * len(asked.prompts), asked.options.sampling.get("seed"), per_prompt=n)
    note_ignored(answer, asked.options)
    shapes = TextShapes(answer, asked)
    await answer.start(_preparer(state, asked))
    if asked.options.stream:
        return answer.event_stream(shapes.chunks, shapes.last)
    return answer.late_json(shapes.whole)


def _preparer(
    state: State, asked: TextRequest
) -> Callable[[int, Callable[[str, int, int], None], int | None], PieceStream]:
    model = state.model
    started = time.perf_counter()

    def prepare(number: int, progress: Callable[[str, int, int], None], seed: int | None) -> PieceStream:
        options = {**asked.options.sampling, "seed": seed}
        prompt = asked.prompts[number]
        return model.start_text(prompt, special=asked.special, progress=progress, started=started, **options)

    return prepare


class TextShapes:
    """The chunks, or the whole, of one request's completions."""

    def __init__(self, answer: Answer, asked: TextRequest) -> None:
        self._answer = answer
        self._asked = asked
        self._tokenizer = answer.state.model.loaded.tokenizer
        self._head = {
            "id": answer.id,
            "object": "text_completion",
            "created": answer.created,
            "model": answer.state.answer_name(asked.options.model),
            "system_fingerprint": answer.engine.fingerprint,
        }
        self._usage: dict[str, None] = {"usage": None} if asked.options.include_usage else {}
        self._writers: dict[int, LegacyLogprobs] = {}
        self._echoed: set[int] = set()

    def _echo(self, run: Run) -> str:
        """The prompt's text where it is part of the answer."""
        return self._prompt_text(run) if self._asked.echo else ""

    def _prompt_ids(self, run: Run) -> list[int]:
        assert run.stream is not None
        return list(run.stream.prompt_ids)

    def whole(self, responses: list[Response]) -> dict[str, Any]:
        """The JSON of the completions."""
        answer = self._answer
        choices = []
        for run, response in zip(answer.runs, responses, strict=True):
            tokens, values = logprobs_of_answer(response)
            if self._asked.echo and self._asked.logprobs is not None:
                tokens, values = [*self._prompt_ids(run), *tokens], [*response.prompt_logprobs, *values]
            start = 0 if self._asked.echo else len(self._prompt_text(run))
            writer = LegacyLogprobs(self._tokenizer, start)
            choice: dict[str, Any] = {
                "index": run.index,
                "text": self._echo(run) + response.text,
                "logprobs": writer.lists(tokens, values, bool(self._asked.logprobs)) if self._wanted else None,
                "finish_reason": answer.finish_reason(response),
            }
            if self._asked.options.return_token_ids:
                choice |= {"token_ids": list(response.token_ids), "prompt_token_ids": self._prompt_ids(run)}
            choices.append(choice)
        extra = {
            "timings": answer.timings(responses[0], answer.runs[0]),
            "kimi": answer.kimi(responses[0], answer.runs[0]),
        }
        return {**self._head, "choices": choices, "usage": self._counts(responses), **extra}

    @property
    def _wanted(self) -> bool:
        return self._asked.logprobs is not None

    def _prompt_text(self, run: Run) -> str:
        prompt = self._asked.prompts[run.index // self._answer.per_prompt]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, special=True)

    def _counts(self, responses: list[Response]) -> dict[str, Any]:
        firsts = responses[:: self._answer.per_prompt]
        prompt = sum(one.usage.prompt_tokens for one in firsts)
        completion = sum(one.usage.completion_tokens for one in responses)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(one.usage.cached_tokens for one in firsts)},
        }

    def chunks(self, run: Run, happened: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        chunks: list[dict[str, Any]] = []
        ended = happened if isinstance(happened, Response) else None
        if isinstance(happened, Piece):
            values = list(happened.logprobs)
            tokens = [value.token_id for value in values]
            chunks.append(self._chunk(run, self._opening(run) + happened.text, self._lists(run, tokens, values)))
        elif ended is not None:
            last = [ended.end_logprob] if ended.end_logprob is not None else []
            lists = self._lists(run, [value.token_id for value in last], last)
            chunk = self._chunk(run, self._opening(run), lists, self._answer.finish_reason(ended))
            answer = self._answer
            chunks.append({**chunk, "timings": answer.timings(ended, run), "kimi": answer.kimi(ended, run)})
        return chunks

    def _opening(self, run: Run) -> str:
        """The prompt, once, where it is part of the answer."""
        if run.index in self._echoed:
            return ""
        self._echoed.add(run.index)
        return self._echo(run)

    def _lists(self, run: Run, tokens: list[int], values: list[Any]) -> dict[str, Any] | None:
        if not self._wanted:
            return None
        writer = self._writers.get(run.index)
        if writer is None:
            writer = LegacyLogprobs(self._tokenizer, len(self._prompt_text(run)))
            self._writers[run.index] = writer
        return writer.lists(tokens, values, bool(self._asked.logprobs))

    def _chunk(self, run: Run, text: str, logprobs: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": run.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice], **self._usage}

    def last(self) -> list[dict[str, Any]]:
        """The chunk with the counts, where they are asked for."""
        if not self._asked.options.include_usage:
            return []
        responses = [self._answer.responses[index] for index in sorted(self._answer.responses)]
        return [{**self._head, "choices": [], "usage": self._counts(responses)}]
