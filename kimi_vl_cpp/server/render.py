"""Markdown with formulas and code to HTML that the page may insert as it is.

The text is a model's and therefore anybody's: raw HTML is text, links lead to http(s) only, pictures become links
(fetching one would tell its host what was answered), and no element has a style, an id or an event.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ..errors import BadRequest
from .formulas import to_mathml

MAX_TEXT = 400_000
"""Characters of one text."""
MAX_MARKED = 20_000
"""Characters of a block. A longer one is shown as it is: its marks would take quadratic time."""
MAX_FORMULA_LINES = 60
"""Of a display formula between \\[ and \\]."""
MAX_HIGHLIGHTED = 60_000
"""Characters of a code block. A longer one has no colours."""


@dataclass(frozen=True, slots=True)
class Block:
    """A top-level block: a paragraph, a list, a table, ...

    line: where it begins in the text, counted from 0.
    """

    line: int
    html: str


def render(text: str) -> list[Block]:
    """The blocks of a Markdown text, in order: CommonMark, tables, strikethrough, formulas in `$`, `$$`, `\\(`, `\\[`.

    A block that another one follows is final: text appended later does not change it, apart from link definitions.
    Raises BadRequest (request.text_too_long).
    """
    if len(text) > MAX_TEXT:
        raise BadRequest(
            f"text: {len(text)} characters, at most {MAX_TEXT} are rendered: send it in parts",
            code="request.text_too_long",
        )
    text = re.sub(r"\r\n?", "\n", text)
    if _longest_paragraph(text) > MAX_MARKED:
        return [Block(0, f'<p class="plain">{html.escape(text)}</p>')]
    environment: dict[str, Any] = {}
    blocks = []
    for tokens in _top_level(_MARKDOWN.parse(text, environment)):
        line = tokens[0].map[0] if tokens[0].map else 0
        blocks.append(Block(line, _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, environment)))
    return blocks


def _longest_paragraph(text: str) -> int:
    """Upper bound of what inline rules see at once. Code is not inline, but blank lines may be in it: close enough."""
    return max(len(part) for part in re.split(r"\n[ \t]*\n|\n(?=```|~~~)", text))


def _top_level(tokens: Sequence[Token]) -> list[list[Token]]:
    blocks: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            blocks.append([])
        blocks[-1].append(token)
        depth += token.nesting
    return blocks


def _brackets_inline(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)` and, within a line, `\[…\]`."""
    for opening, closing, kind in (("\\(", "\\)", "math_inline"), ("\\[", "\\]", "math_inline_double")):
        if state.src.startswith(opening, state.pos):
            end = state.src.find(closing, state.pos + 2, state.posMax)
            if end < 0:
                return False
            if not silent:
                token = state.push(kind, "math", 0)
                token.content = state.src[state.pos + 2 : end]
            state.pos = end + 2
            return True
    return False


def _brackets_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""`\[` at the start of a line to `\]` at the end of one, without an empty line between."""
    if state.is_code_block(start) or not state.src.startswith("\\[", state.bMarks[start] + state.tShift[start]):
        return False
    for line in range(start, min(end, start + MAX_FORMULA_LINES)):
        content = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
        if not content or state.sCount[line] < state.blkIndent:
            return False
        if content.endswith("\\]"):
            if silent:
                return True
            token = state.push("math_block", "math", 0)
            token.content = state.getLines(start, line + 1, state.sCount[start], False).strip()[2:-2]
            token.map = [start, line + 1]
            state.line = line + 1
            return True
    return False


class _Renderer(RendererHTML):
    """What differs from CommonMark's HTML: no style, no picture, colours and a copy button for code."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        token = tokens[idx]
        language = (token.info.split() or [""])[0][:40]
        name = html.escape(language)
        return (
            f'<div class="code"><div class="code-head"><span>{name}</span><button type="button" class="copy"></button>'
            f'</div><pre tabindex="0"><code>{_coloured(token.content, language)}</code></pre></div>\n'
        )

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return self.fence(tokens, idx, options, env)

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        token = tokens[idx]
        address = html.escape(str(token.attrs.get("src", "")))
        name = html.escape(self.renderInlineAsText(token.children, options, env)) or address
        return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">{name}</a>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        address = html.escape(str(tokens[idx].attrs.get("href", "")))
        return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">'

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return '<div class="table" tabindex="0"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return self._cell(tokens[idx])

    def td_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return self._cell(tokens[idx])

    def _cell(self, token: Token) -> str:
        style = str(token.attrs.get("style", ""))  # a style attribute would be refused by the page's policy
        side = style.removeprefix("text-align:") if style in ("text-align:right", "text-align:center") else ""
        return f'<{token.tag} class="{side}">' if side else f"<{token.tag}>"

    def math_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return to_mathml(tokens[idx].content, block=False)

    def math_inline_double(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return to_mathml(tokens[idx].content, block=True)

    def math_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Any) -> str:
        return f'<div class="formula" tabindex="0">{to_mathml(tokens[idx].content, block=True)}</div>\n'


def _coloured(code: str, language: str) -> str:
    if language and len(code) <= MAX_HIGHLIGHTED:
        try:
            return str(highlight(code, get_lexer_by_name(language, stripnl=False, ensurenl=False), _FORMATTER))
        except ClassNotFound:
            pass
    return html.escape(code)


def _is_web_address(url: str) -> bool:
    return url.lower().startswith(("https://", "http://"))


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False, "maxNesting": 30}, renderer_cls=_Renderer)
    markdown.enable(["table", "strikethrough"])
    dollarmath_plugin(markdown, allow_labels=False, allow_space=False, allow_digits=False, allow_blank_lines=False)
    markdown.inline.ruler.before("escape", "math_brackets", _brackets_inline)
    interrupts = ["paragraph", "reference", "blockquote", "list"]
    markdown.block.ruler.before("fence", "math_brackets_block", _brackets_block, {"alt": interrupts})
    for name in ("math_inline", "math_inline_double", "math_block"):
        markdown.add_render_rule(name, getattr(_Renderer, name))
    markdown.validateLink = _is_web_address  # type: ignore[method-assign]
    return markdown


_FORMATTER = HtmlFormatter(nowrap=True)
_MARKDOWN = _markdown()
