"""Reading documents: retries, loops, the journal, killed runs, tables."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import documents
import fake_core
import long_files_campaign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest
from kimi_vl_cpp.media.drawn import Part
from kimi_vl_cpp.media.paged import is_usable
from kimi_vl_cpp.media.pdf import Document
from kimi_vl_cpp.model import KimiVL
from kimi_vl_cpp.tasks import outputs, reading, recipes, tables
from kimi_vl_cpp.tasks.journal import Journal

WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo"
LAYER = f"{WORDS} sierra tango uniform victor"


@pytest.fixture
def script(monkeypatch):
    return fake_core.install(monkeypatch)


@pytest.fixture
def model(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=4096, in_token_limit=64) as loaded:
        yield loaded


def pages_of(*texts: str) -> list[tuple[int, object]]:
    return [(page.number, page) for page in Document(documents.pdf(texts, font_size=6), name="x.pdf").pages()]


def read(model, pages, path: Path, **options):
    with Journal(path, {"document": "x"}) as journal:
        return list(reading.read_pages(model, pages, recipes.RECIPES["md"], journal, **options))


def test_a_good_answer_is_the_page(model, script, tmp_path):
    script.answer = "```markdown\n# Title\n```"
    (page,) = read(model, pages_of("Title"), tmp_path / "j")
    assert (page.text, page.source, page.attempts, page.problem) == ("# Title", "model", 1, "")


def test_an_answer_that_repeats_itself_is_tried_again_then_in_halves_then_taken_from_the_text_layer(
    model, script, tmp_path
):
    script.answer = "ab" * 2000
    (page,) = read(model, pages_of(LAYER), tmp_path / "j", max_new_tokens=3000)
    assert (page.source, page.problem, page.attempts) == ("text layer", "repetition", 6)
    assert page.text == LAYER
    (blank,) = read(model, pages_of(""), tmp_path / "k", max_new_tokens=3000)
    assert (blank.source, blank.text, blank.problem) == ("none", "", "repetition")


def test_an_answer_that_is_cut_off_is_kept_where_nothing_better_comes(model, script, tmp_path):
    script.answer = "no loop: " + "".join(map(str, range(500)))
    (page,) = read(model, pages_of(""), tmp_path / "j", max_new_tokens=40)
    assert (page.source, page.problem) == ("none", "length") and page.text == script.answer[:40]


def test_an_answer_with_other_words_than_the_text_layer_is_not_taken(model, script, tmp_path):
    script.answer = "something that the page does not say"
    (page,) = read(model, pages_of(LAYER), tmp_path / "j")
    assert (page.source, page.problem) == ("text layer", "other text")
    script.answer = WORDS
    (page,) = read(model, pages_of(LAYER), tmp_path / "k")
    assert (page.source, page.text) == ("model", WORDS)


@pytest.mark.parametrize("layer", ["", "short", "\ufffd" * 40, "\ue001abc" * 20, "\x01\x02" * 30])
def test_a_text_layer_that_is_no_text_is_not_used(layer):
    assert not is_usable(layer)


def test_halves_overlap_and_are_joined_once():
    assert reading.join_halves("a\nb\nc", "b \nc\nd") == "a\nb\nc\nd"
    assert reading.join_halves("a", "b") == "a\nb"
    (page,) = Document(documents.pdf(["x"])).pages()
    whole = page.draw(100, 200)
    upper, lower = Part(page, 0, 0.55), Part(page, 0.45, 1)
    assert (upper.draw(100, 110) == whole[:110]).all() and (lower.draw(100, 110) == whole[90:]).all()


# The journal


def test_no_page_is_read_twice(model, script, tmp_path):
    pages = pages_of("a", "b", "c")
    first = read(model, pages[:2], tmp_path / "j")
    n_encoded = len(script.encoded)
    again = read(model, pages, tmp_path / "j")
    assert again[:2] == first and len(script.encoded) - n_encoded == 1


def test_a_line_that_was_cut_by_a_crash_is_read_again(model, script, tmp_path):
    pages = pages_of("a", "b")
    whole = read(model, pages, tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-10])
    again = read(model, pages, tmp_path / "j")
    assert [page.text for page in again] == [page.text for page in whole]
    assert len((tmp_path / "j").read_bytes().splitlines()) == 3


@given(st.integers(0, 400))
def test_a_journal_cut_anywhere_gives_a_beginning_of_its_pages(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j"
    head = {"document": "x"}
    with Journal(path, head) as journal:
        for number in range(1, 6):
            journal.add(number, {"text": f"ä{number}" * 5})
    path.write_bytes(path.read_bytes()[:cut])
    with Journal(path, head) as journal:
        assert list(journal.done) == list(range(1, len(journal.done) + 1))
        journal.add(9, {"text": "x"})
    with Journal(path, head) as journal:
        assert journal.done[9] == {"text": "x"}


def test_the_journal_of_another_run_is_refused_and_names_the_difference(tmp_path):
    with Journal(tmp_path / "j", {"document": "x", "prompt": "a"}) as journal:
        journal.add(1, {"text": "kept"})
        with pytest.raises(BadRequest) as caught:
            Journal(tmp_path / "j", {"document": "x", "prompt": "a"})
        assert caught.value.code == "document.journal_busy"
    with pytest.raises(BadRequest, match="prompt 'a', this run has 'b'") as caught:
        Journal(tmp_path / "j", {"document": "x", "prompt": "b"})
    assert caught.value.code == "document.journal"
    (tmp_path / "notes").write_text("my own notes\n")
    with pytest.raises(BadRequest):
        Journal(tmp_path / "notes", {"document": "x"})
    assert (tmp_path / "notes").read_text() == "my own notes\n"
    with Journal(tmp_path / "j", {"document": "y"}, restart=True) as journal:
        assert journal.done == {}


def test_a_run_that_kept_nothing_leaves_no_journal(tmp_path):
    with pytest.raises(ValueError, match="the document"), Journal(tmp_path / "j", {"document": "x"}):
        raise ValueError("the document has no pages")
    assert list(tmp_path.iterdir()) == []


# Answers


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("```latex\nx^2\n```", "x^2"),
        ("  plain \n", "plain"),
        ("(nothing)", ""),
        ("(Nothing).", ""),
        ("```\na\n```\nb", "```\na\n```\nb"),
        ("```\na\n```\nb\n```\nc\n```", "```\na\n```\nb\n```\nc\n```"),
        ("~~~md\n| a |\n~~~", "| a |"),
    ],
)
def test_one_outer_fence_is_taken_away(answer, text):
    assert recipes.clean(answer) == text


def test_markdown_tables():
    text = "Before\n\n| a | b\\|c |\n|---|:-:|\n| 1 | 2 |\n| 3 |\n\nafter | that\n"
    (table,), notices = tables.find_tables(text)
    assert table == [["a", "b|c"], ["1", "2"], ["3", ""]] and "1 row padded to 2" in notices[0]


def test_html_tables_with_spans():
    text = "<table><tr><th colspan=2>a</th></tr><tr><td rowspan='2'>b</td><td>c<br>d</td></tr><tr><td>e &amp; f</table>"
    (table,), _ = tables.find_tables(text)
    assert table == [["a", "a"], ["b", "c\nd"], ["b", "e & f"]]


@given(st.text(max_size=300))
def test_any_text_gives_rectangular_tables(text):
    for data in (text, f"<table>{text}", f"|a|b|\n|-|-|\n|{text}"):
        found, _ = tables.find_tables(data)
        assert all(len({len(row) for row in table}) == 1 for table in found)


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1), min_size=1))
def test_csv_comes_back_as_it_was(table):
    assert list(csv.reader(io.StringIO(tables.to_csv(table), newline=""))) == table


def test_cells_that_a_spreadsheet_would_compute_are_marked_when_asked_for():
    assert tables.to_csv([["=1+1", "-2", "x"]], safe=True) == "'=1+1,'-2,x\r\n"
    assert tables.to_csv([["=1+1"]]) == "=1+1\r\n"


def page(number: int, text: str, source: str = "model", problem: str = "") -> reading.ReadPage:
    return reading.ReadPage(number, text, source, problem, 1, 1, 1, 0.1)


def test_pages_that_were_not_read_are_marked():
    text = outputs.as_text([page(3, "a"), page(7, "", "none", "repetition"), page(8, "b", "none", "length")], "md")
    assert "<!-- page 3 -->\n\na\n" in text
    assert "<!-- page 7 not read: repetition -->" in text and "<!-- page 8 read in part: length -->\n\nb" in text


def test_a_table_gets_a_file_of_its_own(tmp_path):
    text = "|a|\n|-|\n|1|\n\ntext\n\n|b|\n|-|\n|2|\n"
    written, _ = outputs.write_csv([page(3, text)], tmp_path / "doc.csv", safe=False)
    assert [path.name for path in written] == ["doc.t3-1.csv", "doc.t3-2.csv"]
    assert written[1].read_bytes() == b"b\r\n2\r\n"


# The command


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    path = tmp_path_factory.mktemp("document") / "fifty.pdf"
    path.write_bytes(documents.pdf([f"${n}.{n:02d}" for n in range(1, 51)], (168, 112), font_size=30))
    return path


def command(fifty: Path, out: Path, *more: str) -> list[str]:
    question = fifty.with_name("question.txt")
    question.write_text("What is the price?")
    patches = () if "--image-patches" in more else ("--image-patches", "96")
    return ["read", str(fifty), "-o", str(out), "--prompt-file", str(question), "-t", "1", *patches, *more]


def test_a_run_that_was_killed_goes_on_and_reads_no_page_twice(fifty, tmp_path):
    line = [sys.executable, "-m", "kimi_vl_cpp", *command(fifty, tmp_path / "unused", "--pages", "1-4")]
    line = line[: line.index("-o")] + line[line.index("-o") + 2 :]
    long_files_campaign.killed_and_taken_up(line, tmp_path, ".md", kills=[1], n_records=4)


def test_json_holds_every_page(fifty, tmp_path):
    assert cli.main(command(fifty, tmp_path / "x.json", "--pages", "2,last")) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert [entry["page"] for entry in result["pages"]] == [2, 50] and result["file"] == "fifty.pdf"


@pytest.mark.parametrize(
    ("more", "name", "words"),
    [
        ((), "x.docx", "expected one of .md"),
        (("--as", "pdf"), "x.md", "--as pdf: expected one of"),
        (("--pages", "51"), "x.md", "names page 51"),
        (("--image-patches", "999"), "x.md", "from 4 to 480"),
        ((), "none/x.md", "a folder that exists"),
    ],
)
def test_a_wrong_command_line_is_refused_and_writes_nothing(fifty, tmp_path, capsys, more, name, words):
    assert cli.main(command(fifty, tmp_path / name, *more)) in (2, 4)
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_of_the_user_is_not_replaced(fifty, tmp_path, capsys):
    (tmp_path / "x.md").write_text("mine")
    assert cli.main(command(fifty, tmp_path / "x.md")) == 2
    assert "--force" in capsys.readouterr().err and (tmp_path / "x.md").read_text() == "mine"
    assert cli.main(command(fifty, tmp_path / "x.md", "--force", "--pages", "1")) == 0


def test_office_files_are_refused_with_the_command_that_converts_them(tmp_path, capsys):
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml" + bytes(200))
    assert cli.main(["run", "-i", str(tmp_path / "a.docx"), "What is this?"]) == 4
    assert "soffice --headless --convert-to pdf" in capsys.readouterr().err
