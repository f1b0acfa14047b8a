"""The HTML of answers: what it looks like, and that nothing of a hostile text acts in it."""

from __future__ import annotations

import html.parser
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mdit_py_plugins", reason="needs the extra [server]")

from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.server import formulas
from kimi_vl_cpp.server.render import MAX_MARKED, MAX_TEXT, render

ELEMENTS = {
    *"p h1 h2 h3 h4 h5 h6 ul ol li blockquote hr br em strong s a code pre div span button".split(),
    *"table thead tbody tr th td".split(),
    *formulas.ELEMENTS,
}
ATTRIBUTES = {
    "a": {"href", "target", "rel"},
    "div": {"class", "tabindex"},
    "pre": {"tabindex"},
    "span": {"class"},
    "code": {"class"},
    "p": {"class"},
    "ol": {"start"},
    "button": {"class", "type"},
    "th": {"class"},
    "td": {"class"},
}


class Reader(html.parser.HTMLParser):
    """Collects what is not on the lists above, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ELEMENTS:
            self.wrong.append(f"<{tag}>")
        allowed = set(formulas.ATTRIBUTES) if tag in formulas.ELEMENTS else ATTRIBUTES.get(tag, set())
        self.wrong += [f"{tag} {name}" for name, _ in attrs if name not in allowed]
        for name, value in attrs:
            if name == "href" and not (value or "").lower().startswith(("http://", "https://")):
                self.wrong.append(f"{tag} {name}={value}")
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.wrong.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.wrong.append("declaration")

    def unknown_decl(self, data: str) -> None:
        self.wrong.append("declaration")

    def handle_pi(self, data: str) -> None:
        self.wrong.append("processing instruction")


def page(text: str) -> str:
    return "".join(block.html for block in render(text))


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(page(text))
    reader.close()
    reader.wrong += [f"<{tag}> is not closed" for tag in reader.open]
    return reader


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](java&#10;script:alert(1))",
    "[a](data:text/html,<script>)",
    "[a](vbscript:x)",
    "[a](//host/path)",
    "[a](/v1/models)",
    "<javascript:alert(1)>",
    '[a](https://a.b/"onmouseover="alert(1))',
    '[a](https://a.b "title" onclick=x)',
    "![a](https://host/steal.png)",
    "![a](javascript:alert(1))",
    '```"><script>\nx\n```',
    "```python\n</code></pre><script>alert(1)</script>\n```",
    r"$\text{<script>alert(1)</script>}$",
    r"$\text{&lt;script&gt;}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\style{background:url(//a)}{x}$",
    r"$\class{x}{y}$",
    r'$\color{red" onclick="x}{y}$',
    r"$\rule{99999999em}{99999999em}$",
    r"$\mathop{<img src=x onerror=alert(1)>}$",
    r"\(<iframe>\) and \[</math><script>\]",
    "$$\n</math><script>alert(1)</script>\n$$",
    "| a | <b> |\n|:-:|---|\n| <i> | `<script>` |",
    "[x]: javascript:alert(1)\n\n[x]",
    "\x00\x1b[31m ￾",
    "<!-- a --> <?php ?> <![CDATA[x]]> <!DOCTYPE html>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_text(text: str) -> None:
    assert read(text).wrong == []


@given(
    st.lists(st.sampled_from([*HOSTILE, "\n", "\n\n", "> ", "- ", "`", "```", "$", "\\(", "*", "|", "a"])).map("".join)
)
def test_no_mixture_of_hostile_texts_acts(text: str) -> None:
    assert read(text).wrong == []


@given(st.text(alphabet="<>&\"'`$\\{}[]()*_~|:-#!^\n a1\u202e/"))
def test_no_text_acts(text: str) -> None:
    assert read(text).wrong == []


@pytest.mark.parametrize("text", [">" * 5_000, "- " * 5_000, "[" * 5_000, "*a " * 5_000, "$" + "{" * 3_000 + "$"])
def test_deep_nesting_ends(text: str) -> None:
    assert read(text).wrong == []


def test_a_huge_block_is_shown_as_it_is() -> None:
    text = "*a* <b> " * (MAX_MARKED // 8 + 1)
    assert read(text).text == text and "<em>" not in page(text)


def test_too_long_a_text_is_refused_with_its_limit() -> None:
    with pytest.raises(BadRequest, match=f"{MAX_TEXT + 1} characters, at most {MAX_TEXT}") as error:
        render("a" * (MAX_TEXT + 1))
    assert error.value.code == "request.text_too_long"


@pytest.mark.parametrize(
    ("latex", "why"),
    [
        (r"\text{", "unfinished"),
        (r"\frac{a", "unfinished"),
        ("{" * 3_000, "deep"),
        (r"\def\a{b}\a", "a macro"),
        ("x" * 5_000, "long"),
    ],
)
def test_a_formula_that_cannot_be_converted_stays_source(latex: str, why: str) -> None:
    result = formulas.to_mathml(latex, block=False)
    assert result.startswith(('<code class="formula">', "<math")), why
    if why != "unfinished":
        assert latex in result


def test_formulas_are_mathml() -> None:
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in page(r"so $\frac{a}{b}$")
    for text in ("$$\nx+1\n$$", "\\[\nx+1\n\\]", "\\[x+1\\]"):
        assert '<math display="block"><mrow><mi>x</mi><mo>+</mo><mn>1</mn></mrow></math>' in page(text)
    assert '<math display="inline"><mrow><mi>y</mi></mrow></math>' in page(r"here \(y\)")


@pytest.mark.parametrize("text", ["It costs $10.05, not $20.", "between $5 and $6 or so", "a $ b $ c"])
def test_money_is_no_formula(text: str) -> None:
    assert page(text) == f"<p>{text}</p>\n"


def test_tables_keep_their_alignment_without_a_style() -> None:
    found = page("|a|b|\n|:-|-:|\n|1|2|")
    assert '<th class="right">b</th>' in found and "style" not in found


def test_code_has_its_language_colours_and_place_for_a_copy_button() -> None:
    found = page('```python\nprint("<")\n```')
    assert "<span>python</span>" in found and '<button type="button" class="copy">' in found
    assert '<span class="nb">print</span>' in found and "&lt;" in found
    assert "<span>nonsense</span>" in page("```nonsense\nx\n```")
    assert read("```python\n\n  x = 1\n\n```").text == "python\n  x = 1\n\n\n"


def test_links_lead_to_the_web_only_and_pictures_are_links() -> None:
    assert re.findall(r'href="([^"]*)"', page("[a](https://a.b) ![c](http://d.e/f.png) [g](ftp://h)")) == [
        "https://a.b",
        "http://d.e/f.png",
    ]
    assert "<img" not in page("![c](http://d.e/f.png)")


TEXT = "# Title\n\nA paragraph\nof two lines.\n\n- one\n- two\n\n  more\n\n```\ncode\n\ncode\n```\n|a|\n|-|\n|1|\n\n> e"


def test_blocks_name_the_line_where_they_begin() -> None:
    assert [block.line for block in render(TEXT)] == [0, 2, 5, 10, 15, 19]


def test_a_block_that_another_follows_is_final() -> None:
    whole = render(TEXT)
    for length in range(len(TEXT)):
        begun = render(TEXT[:length])
        assert begun[:-1] == whole[: max(0, len(begun) - 1)], TEXT[:length]


def test_the_rest_of_a_text_renders_alone_as_it_does_within() -> None:
    whole = render(TEXT)
    lines = TEXT.split("\n")
    for count, block in enumerate(whole):
        assert [b.html for b in render("\n".join(lines[block.line :]))] == [b.html for b in whole[count:]]
