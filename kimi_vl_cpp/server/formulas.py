"""LaTeX to MathML that a page may insert as it is.

latex2mathml writes text and attributes of its input unescaped (`\\text{<script>}`, `\\href{javascript:…}`), recurses
as deep as braces nest, and expands macros without bound. So what it builds is written out here, by a list of elements
and attributes, and what it cannot or should not convert stays source.
"""

from __future__ import annotations

import html
import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

MAX_FORMULA = 4_000
"""Characters. Longer formulas stay source."""
MAX_DEPTH = 40
"""Of braces and \\left … \\right, and of elements."""

ELEMENTS = frozenset(
    "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mmultiscripts "
    "mtable mtr mtd mstyle mpadded mphantom merror menclose".split()
)
ATTRIBUTES = {
    **dict.fromkeys("width height depth lspace rspace voffset linethickness minsize maxsize".split(), "length"),
    **dict.fromkeys("columnspacing rowspacing".split(), "lengths"),
    **dict.fromkeys(
        "display displaystyle scriptlevel stretchy fence separator symmetric largeop movablelimits accent accentunder "
        "form mathvariant columnalign rowalign columnlines rowlines notation".split(),
        "words",
    ),
    "mathcolor": "colour",
    "mathbackground": "colour",
}
_VALUES = {
    "length": re.compile(r"[-+]?\d{0,2}(\.\d{1,6})?(em|ex|mu|pt|px|%)?"),
    "lengths": re.compile(r"([-+]?\d{0,2}(\.\d{1,6})?(em|ex|mu|pt|px|%)?\s*){1,50}"),
    "words": re.compile(r"[a-z0-9 -]{1,200}"),
    "colour": re.compile(r"[a-zA-Z]{1,30}|#[0-9a-fA-F]{3,8}"),
}
_MACRO = re.compile(r"\\(def|let|newcommand|renewcommand|providecommand|newenvironment|DeclareMathOperator)\b")


def to_mathml(latex: str, block: bool) -> str:
    """`latex` (without its delimiters) as a `<math>` element, or as `<code class="formula">` if it has to stay source.

    block: a display formula on lines of its own.
    """
    source = f'<code class="formula">{html.escape(latex)}</code>'
    if len(latex) > MAX_FORMULA or _depth(latex) > MAX_DEPTH or _MACRO.search(latex):
        return source
    try:
        return _written(convert_to_element(latex, display="block" if block else "inline"), MAX_DEPTH * 3)
    except Exception:  # its own errors, IndexError, KeyError, RecursionError: all mean "not a formula it can read"
        return source


def _depth(latex: str) -> int:
    deepest = depth = 0
    for mark in re.finditer(r"\\left\b|\\right\b|\\begin\b|\\end\b|[{}]|\\sqrt|[\^_]", latex):
        if mark[0] in ("\\left", "\\begin", "{"):
            depth += 1
        elif mark[0] in ("\\right", "\\end", "}"):
            depth -= 1
        deepest = max(deepest, depth)
    return deepest


def _written(element: Element, room: int) -> str:
    """Raises ValueError for an element that is not of MathML, or deeper than `room`."""
    if room == 0 or element.tag not in ELEMENTS:
        raise ValueError(f"<{element.tag}>")
    attributes = "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and _VALUES[ATTRIBUTES[name]].fullmatch(value)
    )
    inside = _text(element.text) + "".join(_written(child, room - 1) + _text(child.tail) for child in element)
    return f"<{element.tag}{attributes}>{inside}</{element.tag}>"


def _text(text: str | None) -> str:
    return html.escape(html.unescape(text or ""))  # the library writes operators as character references
