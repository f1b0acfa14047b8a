"""Answers that follow a grammar: a JSON schema, a regular expression, a list of choices, or one in Lark's notation.

Owns the compiling (by llguidance, of the extra `server`), the one grammar for a whole reply with its reasoning, and the
mask of the tokens that may come next. Knows no sampler: `choosing` asks for the mask and reports the token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import BadRequest, KimiVLError, OutOfMemory, Unsupported
from ..text.thinking import CLOSING, OPENING, ThinkingSplitter
from ..types import Reasoning
from .tools import Tool, ToolUse, reply_rules

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    from ..text.tokenizer import Tokenizer

MAX_GRAMMAR_CHARS = 256 << 10
_STACK_BYTES = 512 << 20  # llguidance follows references by recursion: as deep as MAX_GRAMMAR_CHARS let them be
_STACK_LOCK = threading.Lock()
_WHITE_SPACE = r"[ \n\t\r]{0,20}"
_ARGUMENTS_WHITE_SPACE = " ?"
_REPLY = """start: {begin}{reply}thought: "{opening}" body
body[suffix="{closing}"]: /(?s:.*)/
WS: /[ \\t\\r\\n]{{1,8}}/
"""

GrammarKind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True)
class GrammarSource:
    """A grammar as a request gives it. text: a JSON schema, a regular expression, a JSON list of strings, or Lark.
    field: what an error is about. white_space: of a JSON schema, the regular expression of what goes between tokens."""

    kind: GrammarKind
    text: str
    field: str = "grammar"
    white_space: str = _WHITE_SPACE


class GrammarCompiler:
    """Compiles the grammars of one vocabulary; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._lock = threading.Lock()
        self._prepared: llguidance.LLTokenizer | None = None

    def matcher(
        self,
        source: GrammarSource | None,
        reasoning: Reasoning = "no",
        begun: str = "",
        tools: ToolUse | None = None,
    ) -> GrammarMatcher:
        """What follows the tokens of one reply. source: what its text follows, None for any text. reasoning: whether
        one may come before the answer. begun: the beginning of the reply that is there already. tools: the functions
        that it may call.

        Raises BadRequest (code "request.grammar") for a grammar that cannot be compiled, or that `begun` does not fit;
        Unsupported (code "grammar.not_installed") without llguidance.
        """
        prepared = self._prepare()
        return _on_deep_stack(lambda: self._compile(prepared, source, reasoning, begun, tools))

    def _compile(
        self,
        prepared: llguidance.LLTokenizer,
        source: GrammarSource | None,
        reasoning: Reasoning = "no",
        begun: str = "",
        tools: ToolUse | None = None,
    ) -> GrammarMatcher:
        import llguidance

        begin, fixed = _beginning(reasoning, begun)
        text = "" if source is None else _grammar_of(source)
        if begin is not None or tools is not None:
            named = [] if source is None else [{**_as_json(text), "name": "answer"}]
            reply = "WS? @answer\n" if tools is None else f"reply\n{reply_rules(tools, follows_grammar=bool(named))}"
            rules = _REPLY.format(begin=begin or "", reply=reply, opening=OPENING, closing=CLOSING)
            for index, tool in enumerate(() if tools is None else tools.callable):
                named.append({**_as_json(_grammar_of(_arguments(tool))), "name": f"arguments_{index}"})
            text = json.dumps({"grammars": [{"lark_grammar": rules}, *named]})
        matcher = llguidance.LLMatcher(prepared, text, log_level=0)
        first = b"" if matcher.is_error() else matcher.compute_bitmask()  # what refers to itself alone fails here
        if matcher.is_error():
            for tool in () if tools is None else tools.callable:
                self._compile(prepared, _arguments(tool))  # its own error, where it is the cause
            raise _bad(source or GrammarSource("lark", "", "tools"), _why_not(matcher))
        ids = self._tokenizer.encode(fixed)
        if matcher.try_consume_tokens(ids) < len(ids):
            raise _bad(
                source or GrammarSource("lark", "", "tools"), "the message that is to be continued does not fit it"
            )
        return GrammarMatcher(matcher, self._n_vocab, None if ids else first)

    def _prepare(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._prepared is None:
                try:
                    import llguidance
                except ModuleNotFoundError:
                    raise Unsupported(
                        "a grammar needs llguidance, which is not installed: pip install 'kimi-vl-cpp[server]'",
                        "grammar.not_installed",
                    ) from None
                stop_ids = sorted(self._tokenizer.stop_ids)
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
                self._prepared = llguidance.LLTokenizer(wrapper, n_vocab=self._n_vocab, eos_token=stop_ids)
            return self._prepared


class GrammarMatcher:
    """The state of one reply in its grammar. bits: the mask of the next token, where it is known already."""

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int, bits: bytes | None = None) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._bits = bits

    def copy(self) -> GrammarMatcher:
        """The same state, of another reply."""
        return GrammarMatcher(self._matcher.deep_copy(), self._n_vocab, self._bits)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.bool_]:
        """bool [n_vocab]: the tokens that may come next."""
        import numpy as np

        bits = self._matcher.compute_bitmask() if self._bits is None else self._bits
        self._check()
        return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: self._n_vocab].astype(np.bool_)

    def consume(self, token: int) -> None:
        """Takes the next token."""
        self._bits = None
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise KimiVLError(f"the grammar failed: {self._matcher.get_error()[:500]}", "grammar.failed")


class _Vocabulary:
    """A vocabulary as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(index) for index in range(tokenizer.n_vocab)]
        self.special_token_ids = sorted(tokenizer.special.values())

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _beginning(reasoning: Reasoning, begun: str) -> tuple[str | None, str]:
    """How a reply's grammar begins, None for that of the answer alone; and the part of `begun` that is inside it."""
    if reasoning == "no" or not begun.strip():
        return (None if reasoning == "no" else "thought? "), begun if reasoning == "no" else ""
    splitter = ThinkingSplitter(reasoning)
    splitter.skip(begun)
    if splitter.thinking:
        return "body ", ""
    return None, begun.rpartition(CLOSING)[2].lstrip()


_Result = TypeVar("_Result")


def _on_deep_stack(work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises, on a thread whose stack is large enough for any grammar that is accepted."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    with _STACK_LOCK:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="kimi-vl-grammar", daemon=True)
            thread.start()
        except RuntimeError:
            raise OutOfMemory(
                f"grammar: no memory for a stack of {_STACK_BYTES >> 20} MiB to compile it on: give the process more",
                "memory.grammar",
            ) from None
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _arguments(tool: Tool) -> GrammarSource:
    return GrammarSource("json_schema", tool.parameters, tool.field, _ARGUMENTS_WHITE_SPACE)


def _why_not(matcher: llguidance.LLMatcher) -> str:
    reason = matcher.get_error().partition("<state>")[0].strip()
    if reason.startswith("NoExtension"):
        return "nothing can begin as it asks: does it refer to nothing but itself?"
    return f"cannot be compiled: {reason[:500]}"


def _grammar_of(source: GrammarSource) -> str:
    """llguidance's text of the answer's grammar."""
    import llguidance

    if len(source.text) > MAX_GRAMMAR_CHARS:
        raise _bad(source, f"got {len(source.text)} characters, expected at most {MAX_GRAMMAR_CHARS}")
    if source.kind == "json_schema":
        overrides: Any = {"whitespace_pattern": source.white_space}
        try:
            return llguidance.LLMatcher.grammar_from_json_schema(source.text, overrides=overrides)
        except ValueError as error:
            raise _bad(source, f"is not a JSON schema: {error}") from None
    if source.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(source.text)
    if source.kind == "choice":
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(source.text))
        return llguidance.LLMatcher.grammar_from_lark(f"start: {choices}")
    return llguidance.LLMatcher.grammar_from_lark(source.text)


def _as_json(grammar: str) -> dict[str, Any]:
    """One grammar of llguidance as a member of several."""
    if grammar.lstrip().startswith("{"):
        found: dict[str, Any] = json.loads(grammar)["grammars"][0]
        return found
    return {"lark_grammar": grammar}


def _bad(source: GrammarSource, problem: str) -> BadRequest:
    error = BadRequest(f"{source.field}: {problem}", "request.grammar")
    error.param = source.field
    return error
