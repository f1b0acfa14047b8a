"""OpenAI's older completions: a text, or token ids, and what follows. Requests read, answers written as their dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..types import Response, TokenLogprob
from .fields import bad, boolean, integer, shown, unsupported, whole
from .options import AnswerOptions, read_options
from .shapes import shortest_float32
from .tools import FIELDS as TOOL_FIELDS

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

MAX_PROMPTS = 256
MAX_LOGPROBS = 5
DEFAULT_MAX_TOKENS = 16
_OWN = ("prompt", "echo", "logprobs", "suffix", "best_of", "parse_special")
_CHAT_ONLY = ("top_logprobs", "messages", "continue_final_message", *TOOL_FIELDS)

Prompt = str | list[int]


@dataclass(frozen=True)
class TextRequest:
    """prompts: texts or token ids. logprobs: alternatives for every token, None for no log probabilities. echo: the
    prompt is part of the answer. special: text that spells a special token is that token."""

    prompts: list[Prompt]
    options: AnswerOptions
    logprobs: int | None = None
    echo: bool = False
    special: bool = False


def read_text_request(body: Mapping[str, Any]) -> TextRequest:
    """Raises BadRequest and Unsupported with the field as their `param`."""
    given = {name: value for name, value in body.items() if value is not None}
    for name in ("suffix", "best_of"):
        if given.get(name) not in (None, "", 1):
            raise unsupported(name, f"got {shown(given[name])}, which is not supported: leave it out")
    for name in _CHAT_ONLY:
        if name in given:
            raise bad(name, "belongs to /v1/chat/completions")
    options = read_options({name: value for name, value in body.items() if name not in _OWN})
    sampling = dict(options.sampling)
    if "max_new_tokens" not in sampling and "prompt_only" not in sampling:
        sampling["max_new_tokens"] = DEFAULT_MAX_TOKENS
    sampling.pop("answer_reserve", None)
    n_top = given.get("logprobs")
    if isinstance(n_top, bool):
        n_top = MAX_LOGPROBS if n_top else None
    echo = boolean("echo", given.get("echo", False))
    if n_top is not None:
        n_top = integer("logprobs", n_top, 0, MAX_LOGPROBS)
        sampling["logprobs"] = n_top
        if echo:
            sampling["prompt_logprobs"] = n_top
    return TextRequest(
        _prompts(given.get("prompt")),
        dataclasses.replace(options, sampling=sampling),
        n_top,
        echo,
        boolean("parse_special", given.get("parse_special", False)),
    )


def _prompts(value: Any) -> list[Prompt]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise bad("prompt", f"got {shown(value)}, expected a text, token ids, or a list of either")
    if not isinstance(value[0], (str, list)):
        return [_ids("prompt", value)]
    if len(value) > MAX_PROMPTS:
        raise bad("prompt", f"got {len(value)} prompts, expected at most {MAX_PROMPTS}")
    return [one if isinstance(one, str) else _ids(f"prompt[{index}]", one) for index, one in enumerate(value)]


def _ids(where: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise bad(where, f"got {shown(value)}, expected a text or token ids")
    ids = [whole(token) for token in value]
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int):
            raise bad(f"{where}[{index}]", f"got {shown(token)}, expected a token id")
    return ids


class LegacyLogprobs:
    """Tokens and their log probabilities as four lists, in pieces; the offsets count through all of them."""

    def __init__(self, tokenizer: Tokenizer, start: int = 0) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(special=True)
        self._offset = start

    def lists(self, tokens: Sequence[int], values: Sequence[TokenLogprob | None], with_top: bool) -> dict[str, Any]:
        """The lists of these tokens; None is a token without a value, the first of a prompt."""
        result: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, value in zip(tokens, values, strict=True):
            result["tokens"].append(self._text(token))
            result["token_logprobs"].append(None if value is None else shortest_float32(value.logprob))
            result["top_logprobs"].append(None if value is None or not with_top else self._top(value))
            result["text_offset"].append(self._offset)
            self._offset += len(self._decoder.push(token))
        return result

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def _top(self, value: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in value.top:  # best first: of two with the same text the better one stays
            top.setdefault(self._text(token), shortest_float32(logprob))
        return top


def logprobs_of_answer(response: Response) -> tuple[list[int], list[TokenLogprob | None]]:
    """The tokens of an answer, that which ended it too, and their log probabilities."""
    values = [*response.logprobs, *([response.end_logprob] if response.end_logprob is not None else [])]
    return [value.token_id for value in values], list(values)
