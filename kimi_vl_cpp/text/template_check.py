"""Whether a file's own chat template is Kimi-VL's, and which default system message it has.

Owns a reader of the small part of Jinja that such templates are written in. A template is untrusted: nothing of it is
executed as code, and its length, depth, steps and output are bounded. What the reader does not know makes a template
one that is not Kimi-VL's; the prompt itself is always written by `chat_template`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY_CHAT_TEMPLATE = "tokenizer.chat_template"
DEFAULT_SYSTEM_MESSAGE = "You are a helpful assistant"
OTHER_TEMPLATE = (
    "the file's chat template is not Kimi-VL's or uses what is not read here: it is not used, conversations are "
    "written in Kimi-VL's own format"
)
MAX_CHARS = 1 << 14
_MAX_DEPTH = 32
_MAX_STEPS = 20_000
_MAX_OUTPUT = 1 << 18

_PICTURE = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
_SYSTEM_HEAD = "<|im_system|>system<|im_middle|>"
_MIXED = [{"type": "image", "image": "x"}, {"type": "text", "text": " b "}, {"type": "text", "text": "c\n"}]
# White space around a content shows a template that strips it, a second user turn one that drops earlier turns.
_TEXTS: tuple[list[tuple[str, Any]], ...] = (
    [("user", " hi \n")],
    [("system", " s\n"), ("user", "q")],
    [("user", "q"), ("assistant", " ◁think▷t◁/think▷ a "), ("user", "r"), ("assistant", "b"), ("user", "")],
)
_PICTURES: tuple[list[tuple[str, Any]], ...] = (
    [("user", _MIXED)],
    [("system", "s"), ("user", [*_MIXED, *_MIXED]), ("assistant", "a"), ("user", [{"type": "text", "text": "t"}])],
)


def default_system_message(template: str, *, pictures: bool) -> tuple[bool, str | None]:
    """(whether the template writes conversations as Kimi-VL's does, its default system message or None for none).

    Decided by what it makes of sample conversations, with pictures in them when `pictures`.
    """
    try:
        nodes = _parse(template)
        first = _render(nodes, _TEXTS[0])
        system = None
        if first.startswith(_SYSTEM_HEAD):
            system = first[len(_SYSTEM_HEAD) :].partition("<|im_end|>")[0]
        samples = (*_TEXTS, *_PICTURES) if pictures else _TEXTS
        same = all(_render(nodes, sample) == _expected(sample, system) for sample in samples)
    except (_NotKnown, ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
        return False, None
    return same, system if same else None


def _expected(sample: Sequence[tuple[str, Any]], system: str | None) -> str:
    out = "" if system is None or sample[0][0] == "system" else f"{_SYSTEM_HEAD}{system}<|im_end|>"
    for role, content in sample:
        if not isinstance(content, str):
            content = "".join(part.get("text", _PICTURE) for part in content)
        out += f"<|im_{role}|>{role}<|im_middle|>{content}<|im_end|>"
    return out + "<|im_assistant|>assistant<|im_middle|>"


class _NotKnown(Exception):
    """The template uses what this reader does not know, or too much of it."""


# Reading


@dataclass
class _Node:
    """kind: "text" (value: str), "print" (value: expression), "set", "for" (name, value, body) or "if" (branches:
    condition or None, body)."""

    kind: str
    value: Any = None
    name: str = ""
    body: list[_Node] = field(default_factory=list)
    branches: list[tuple[ast.expr | None, list[_Node]]] = field(default_factory=list)


_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text" | "print" | "block", source), with white space as Transformers has Jinja treat it: the line feed after a
    block goes, and so does the indentation before one; a "-" in a tag strips all of it on that side."""
    start, strip_left, after_block = 0, False, False
    matches = [*_TAG.finditer(template), None]
    for match in matches:
        text = template[start : match.start() if match else len(template)]
        at_line_start = start == 0
        if after_block and text.startswith("\n"):
            text, at_line_start = text[1:], True
        if strip_left:
            text = text.lstrip()
        if match is None:
            yield "text", text
            return
        tag = match[0]
        inner = tag[2:-2]
        if inner.startswith("-"):
            text = text.rstrip()
        elif not tag.startswith("{{") and not inner.startswith("+"):
            line = text.rpartition("\n")[2]
            if line.strip(" \t") == "" and ("\n" in text or at_line_start):
                text = text[: len(text) - len(line)]
        yield "text", text
        strip_left, after_block, start = inner.endswith("-"), not tag.startswith("{{"), match.end()
        if not tag.startswith("{#"):
            yield ("print" if tag.startswith("{{") else "block"), inner.strip("+-").strip()


def _parse(template: str) -> list[_Node]:
    if len(template) > MAX_CHARS:
        raise _NotKnown
    root: list[_Node] = []
    stack: list[tuple[_Node, list[_Node]]] = []
    body = root
    for kind, source in _pieces(template):
        word, _, rest = source.partition(" ") if kind == "block" else ("", "", "")
        if kind == "text":
            if source:
                body.append(_Node("text", source))
        elif kind == "print":
            body.append(_Node("print", _expression(source)))
        elif word == "set":
            name, equals, value = rest.partition("=")
            if not equals or not name.strip().isidentifier():
                raise _NotKnown
            body.append(_Node("set", _expression(value), name.strip()))
        elif word in ("for", "if"):
            if len(stack) >= _MAX_DEPTH:
                raise _NotKnown
            node = _Node(word)
            body.append(node)
            stack.append((node, body))
            if word == "for":
                node.name, found, over = (part.strip() for part in rest.partition(" in "))
                if not found or not node.name.isidentifier():
                    raise _NotKnown
                node.value, body = _expression(over), node.body
            else:
                body = []
                node.branches.append((_expression(rest), body))
        elif word in ("elif", "else") and stack and stack[-1][0].kind == "if":
            body = []
            stack[-1][0].branches.append((_expression(rest) if word == "elif" else None, body))
        elif word in ("endif", "endfor") and stack and word == f"end{stack[-1][0].kind}":
            body = stack.pop()[1]
        else:
            raise _NotKnown
    if stack:
        raise _NotKnown
    return root


_STRING = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_CONSTANTS = {"true": "True", "false": "False", "none": "None"}


def _expression(source: str) -> ast.expr:
    """Jinja's expression as Python's syntax tree. A test or a filter, which binds tighter than any operator, is written
    as a power: `x is string` becomes `x ** is_string`, `x | trim` becomes `x ** filter_trim`."""
    parts = _STRING.split(source)
    for index in range(0, len(parts), 2):
        text = parts[index]
        if "**" in text:
            raise _NotKnown
        text = re.sub(r"\bis\s+not\s+(\w+)", lambda m: f"** not_{m[1].lower()}", text)
        text = re.sub(r"\bis\s+(\w+)", lambda m: f"** is_{m[1].lower()}", text)
        text = re.sub(r"\|\s*(\w+)", r"** filter_\1", text)
        text = re.sub(r"\b(true|false|none)\b", lambda m: _CONSTANTS[m[1]], text)
        parts[index] = text.replace("~", "+").replace("\n", " ")
    for index in range(1, len(parts), 2):
        parts[index] = parts[index].replace("\n", "\\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's about what is Jinja
            return ast.parse(f"({''.join(parts)})", mode="eval").body
    except (SyntaxError, MemoryError):
        raise _NotKnown from None


# Rendering

_NOTHING = ""  # what Jinja makes of a name that is not defined: empty and false
_TESTS = {
    "string": lambda value: isinstance(value, str),
    "none": lambda value: value is None,
    "mapping": lambda value: isinstance(value, dict),
    "iterable": lambda value: isinstance(value, (str, list, dict)),
    "sequence": lambda value: isinstance(value, (str, list)),
}


class _Renderer:
    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.out: list[str] = []
        self.n_chars = 0
        self.n_steps = 0

    def run(self, nodes: Sequence[_Node]) -> None:
        for node in nodes:
            self.step()
            if node.kind == "text":
                self.write(node.value)
            elif node.kind == "print":
                value = self.value(node.value)
                if not isinstance(value, str):
                    raise _NotKnown
                self.write(value)
            elif node.kind == "set":
                self.names[node.name] = self.value(node.value)
            elif node.kind == "if":
                for condition, body in node.branches:
                    if condition is None or self.value(condition):
                        self.run(body)
                        break
            else:
                self.loop(node)

    def loop(self, node: _Node) -> None:
        items = self.value(node.value)
        if not isinstance(items, list):
            raise _NotKnown
        outer = dict(self.names)
        for index, item in enumerate(items):
            last = len(items) - 1
            loop = {"first": index == 0, "last": index == last, "index": index + 1, "index0": index}
            self.names = {**outer, node.name: item, "loop": {**loop, "length": len(items)}}
            self.run(node.body)
        self.names = outer  # what a loop sets is gone after it, as in Jinja

    def step(self) -> None:
        self.n_steps += 1
        if self.n_steps > _MAX_STEPS:
            raise _NotKnown

    def write(self, text: str) -> None:
        self.n_chars += len(text)
        if self.n_chars > _MAX_OUTPUT:
            raise _NotKnown
        self.out.append(text)

    def value(self, tree: ast.expr) -> Any:
        self.step()
        match tree:
            case ast.Constant(value=str() | int() | None as value):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Name(id=name):
                return self.names.get(name, _NOTHING)
            case ast.Attribute(value=of, attr=key):
                return self.item(self.value(of), key)
            case ast.Subscript(value=of, slice=ast.Slice(lower=low, upper=high, step=None)):
                start, end = (None if side is None else self.value(side) for side in (low, high))
                return self.value(of)[start:end]
            case ast.Subscript(value=of, slice=key):
                return self.item(self.value(of), self.value(key))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.value(operand)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)):
                return -number
            case ast.BoolOp(op=operator, values=values):
                result: Any = None
                for part in values:
                    result = self.value(part)
                    if bool(result) == isinstance(operator, ast.Or):
                        break
                return result
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test) else orelse)
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                return self.compare(self.value(left), operator, self.value(right))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.add(self.value(left), self.value(right))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Name(id=name)):
                return self.applied(left, name)
        raise _NotKnown

    @staticmethod
    def item(of: Any, key: Any) -> Any:
        if isinstance(of, dict):
            return of.get(key, _NOTHING)
        if isinstance(of, list) and isinstance(key, int):
            return of[key] if -len(of) <= key < len(of) else _NOTHING
        raise _NotKnown

    @staticmethod
    def compare(left: Any, operator: ast.cmpop, right: Any) -> bool:
        match operator:
            case ast.Eq():
                return bool(left == right)
            case ast.NotEq():
                return bool(left != right)
            case ast.In():
                return left in right
            case ast.NotIn():
                return left not in right
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() if isinstance(left, int) and isinstance(right, int):
                less, same = left < right, left == right
                upward = isinstance(operator, (ast.Lt, ast.LtE))
                return (same and isinstance(operator, (ast.LtE, ast.GtE))) or (not same and less == upward)
        raise _NotKnown

    def add(self, left: Any, right: Any) -> Any:
        if type(left) is not type(right) or not isinstance(left, (str, int)):
            raise _NotKnown
        if isinstance(left, str) and len(left) + len(right) > _MAX_OUTPUT:
            raise _NotKnown
        return left + right

    def applied(self, operand: ast.expr, name: str) -> Any:
        """A test (is_x, not_x) or a filter (filter_x)."""
        kind, _, word = name.partition("_")
        if kind in ("is", "not") and word in ("defined", "undefined"):
            if isinstance(operand, ast.Name):
                found = operand.id in self.names
            elif isinstance(operand, ast.Attribute):
                found = operand.attr in self.value(operand.value)
            elif isinstance(operand, ast.Subscript):
                found = self.value(operand.slice) in self.value(operand.value)
            else:
                raise _NotKnown
            return found == ((kind == "is") == (word == "defined"))
        value = self.value(operand)
        if kind in ("is", "not") and word in _TESTS:
            return _TESTS[word](value) == (kind == "is")
        if kind == "filter" and word == "trim" and isinstance(value, str):
            return value.strip()
        if kind == "filter" and word in ("length", "count") and isinstance(value, (str, list, dict)):
            return len(value)
        raise _NotKnown


def _render(nodes: Sequence[_Node], sample: Sequence[tuple[str, Any]]) -> str:
    messages: list[Mapping[str, Any]] = [{"role": role, "content": content} for role, content in sample]
    renderer = _Renderer({"messages": messages, "add_generation_prompt": True})
    renderer.run(nodes)
    return "".join(renderer.out)
