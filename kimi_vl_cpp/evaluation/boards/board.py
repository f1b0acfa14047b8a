"""Each benchmark on one page: what of a row is asked, and how an answer to it scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadRequest, shown
from ...grounding import prompts
from ...grounding.mapping import Plan
from ...media.open import open_image
from . import rules
from .rows import Pictures, Row, as_list, bad, read_rows

Picture = bytes | Path
Score = Callable[[str], float | None]
"""An answer's score, 0 to 1; None: only a judge could tell."""

Paper = dict[str, float]
"""Variant (instruct, thinking, thinking-2506) -> percent, or points for OCRBench."""


@dataclass(frozen=True)
class Item:
    """A question. content: texts and pictures in their order; document: a PDF whose pages come first. group: what it is
    summed up under, beside the whole. gold: the right answer, for people. score_padded: of a point, by the other
    reading of its shares (grounding/mapping.py)."""

    id: str
    content: tuple[str | Picture, ...]
    group: str
    gold: str
    score: Score
    document: Path | None = None
    system: str | None = None
    score_padded: Callable[[str, Plan], float] | None = None


@dataclass(frozen=True)
class Board:
    """A benchmark. scale: of a perfect result, as the paper prints it. note: how its numbers differ from the official
    script's. needs: what the file is. points: whether answers are places in a picture."""

    name: str
    title: str
    needs: str
    read: Callable[[Row, Pictures, Path], Item]
    paper: Paper
    scale: float = 100.0
    note: str = ""
    points: bool = False

    def items(self, path: Path, folder: Path) -> Iterator[Item]:
        """The questions of a file, their pictures from `folder`. Raises BadRequest "eval.data", Unsupported."""
        pictures = Pictures(path, folder)
        is_empty = True
        for row in read_rows(path):
            is_empty = False
            try:
                item = self.read(row, pictures, path)
            except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
                if isinstance(error, BadRequest):
                    raise
                missing = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
                bad(path, row["index"], f"{missing}; {self.name} expects {self.needs}")
            yield item
        if is_empty:
            raise BadRequest(f"{path}: holds no questions; {self.name} expects {self.needs}", "eval.data")


def board(name: str) -> Board:
    """By name. Raises BadRequest "eval.bench"."""
    if name not in BOARDS:
        raise BadRequest(f"{shown(name)} is no benchmark here, there are {', '.join(BOARDS)}", "eval.bench")
    return BOARDS[name]


def _options(row: Row) -> dict[str, str]:
    found = {c: str(row[c]) for c in "ABCDEFGHIJ" if row.get(c) not in (None, "")}
    if not found and row.get("options"):
        found = {chr(ord("A") + i): str(one) for i, one in enumerate(as_list(row["options"]))}
    return found


def _mmmu(row: Row, pictures: Pictures, _path: Path) -> Item:
    options, gold = _options(row), str(row["answer"]).strip()
    question = f"Hint: {row['hint']}\n" if row.get("hint") else ""
    question += f"Question: {row['question']}\n"
    if options:
        listed = "".join(f"{c}. {text}\n" for c, text in options.items())
        question += f"Options:\n{listed}Please select the correct answer from the options above."
    seen = pictures.of(row) if row.get("image") else _numbered(row, pictures)
    content: list[str | Picture] = []
    used: set[int] = set()
    for part in re.split(r"(<image \d+>)", question):
        found = re.fullmatch(r"<image (\d+)>", part)
        number = int(found[1]) if found else 0
        if 0 < number <= len(seen) and number not in used:
            content.append(seen[number - 1])
            used.add(number)
        elif part:
            content.append(part)
    unused = [one for i, one in enumerate(seen, 1) if i not in used]

    def score(answer: str) -> float | None:
        if options:
            return float(rules.letter(answer, options) == gold)
        return float(rules.open_question(answer, [str(one) for one in as_list(row["answer"])]))

    return Item(str(row["index"]), (*unused, *content), str(row.get("category", "")), gold, score)


def _numbered(row: Row, pictures: Pictures) -> list[Picture]:
    names = [name for name in (f"image_{i}" for i in range(1, 8)) if row.get(name)]
    return [one for name in names for one in pictures.of({**row, "image": None}, name)]


def _mathvista(row: Row, pictures: Pictures, _path: Path) -> Item:
    choices = [str(one) for one in as_list(row["choices"])] if row.get("choices") else []
    want, kind = str(row["answer"]), str(row.get("answer_type", "text"))
    precision = int(float(row.get("precision") or 0))

    def score(answer: str) -> float | None:
        right = rules.mathvista(answer, want, choices=choices, answer_type=kind, precision=precision)
        return None if right is None else float(right)

    query = str(row.get("query") or row["question"])
    group = row.get("task") or (row.get("metadata") or {}).get("task", "")
    return Item(str(row.get("pid", row["index"])), (*pictures.of(row), query), str(group), want, score)


def _infovqa(row: Row, pictures: Pictures, _path: Path) -> Item:
    accepted = [str(one) for one in as_list(row["answers"] if "answers" in row else row["answer"])]
    text = f"{row['question']}\nAnswer the question using a single word or phrase."
    seen = pictures.of(row, "image_local_name")
    group = str(row.get("category", ""))
    return Item(
        str(row.get("questionId", row["index"])),
        (*seen, text),
        group,
        " | ".join(accepted),
        lambda answer: rules.anls(answer, accepted),
    )


def _ocrbench(row: Row, pictures: Pictures, _path: Path) -> Item:
    accepted = [str(one) for one in as_list(row["answers"] if "answers" in row else row["answer"])]
    kind = str(row.get("type") or row.get("category") or "")
    formula = "HME100k" in str(row.get("dataset_name", "")) or kind == "Handwritten Mathematical Expression Recognition"
    content = (*pictures.of(row), str(row["question"]))
    return Item(
        str(row["index"]),
        content,
        kind,
        " | ".join(accepted),
        lambda answer: float(rules.contains(answer, accepted, formula=formula)),
    )


def _screen(row: Row, pictures: Pictures, path: Path, *, corners: bool, group: str) -> Item:
    box = [float(one) for one in as_list(row["bbox"])]
    if len(box) != 4:
        bad(path, row["index"], f"bbox is {shown(row['bbox'])}, expected four numbers")
    if not corners:
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    (picture,) = pictures.of(row, "img_filename")
    request = prompts.point_request(str(row["instruction"]), several=False, may_be_absent=False)

    def score(answer: str, plan: Plan | None = None) -> float:
        return float(rules.inside(answer, box, open_image(picture).original_size, plan))

    gold = ", ".join(f"{one:g}" for one in box)
    item_id = str(row.get("id", row["index"]))
    kind = str(row.get(group, ""))
    return Item(item_id, (picture, request), kind, gold, score, system=prompts.POINT_SYSTEM, score_padded=score)


def _screenspot(row: Row, pictures: Pictures, path: Path) -> Item:
    return _screen(row, pictures, path, corners=False, group="data_type")


def _screenspot_pro(row: Row, pictures: Pictures, path: Path) -> Item:
    return _screen(row, pictures, path, corners=True, group="group")


def _mmlongbench(row: Row, pictures: Pictures, path: Path) -> Item:
    want, kind = str(row["answer"]), str(row["answer_format"])
    document = pictures.file(row, str(row["doc_id"]))
    text = f"{row['question']}\nIf the document does not say, answer: {rules.UNANSWERABLE}."
    group = str(row.get("doc_type", ""))
    return Item(str(row["index"]), (text,), group, want, lambda answer: rules.document(answer, want, kind), document)


_JUDGE = "answers that only a judging model could score are counted apart, and the range that they leave is printed"

BOARDS: dict[str, Board] = {
    one.name: one
    for one in (
        Board(
            "mmmu",
            "MMMU (val)",
            "question, A to J or options, answer and image(s)",
            _mmmu,
            {"instruct": 57.0, "thinking": 61.7, "thinking-2506": 64.0},
            note="an answer that names no option is wrong, where the official script guesses",
        ),
        Board(
            "mathvista",
            "MathVista (testmini)",
            "query, choices, answer, answer_type, precision and image",
            _mathvista,
            {"instruct": 68.7, "thinking": 71.3, "thinking-2506": 80.1},
            note="answers are extracted by rule, where the official script asks a model; " + _JUDGE,
        ),
        Board(
            "infovqa",
            "InfographicVQA (val)",
            "question, answers and image_local_name or image",
            _infovqa,
            {"instruct": 83.2},
        ),
        Board(
            "ocrbench",
            "OCRBench",
            "question, answers, type, dataset_name and image_path or image",
            _ocrbench,
            {"instruct": 867, "thinking": 864, "thinking-2506": 869},
            scale=1000.0,
        ),
        Board(
            "screenspot",
            "ScreenSpot-V2",
            "img_filename, instruction and bbox [x, y, width, height]",
            _screenspot,
            {"instruct": 92.8, "thinking-2506": 91.4},
            points=True,
        ),
        Board(
            "screenspot-pro",
            "ScreenSpot-Pro",
            "img_filename, instruction and bbox [x0, y0, x1, y1]",
            _screenspot_pro,
            {"instruct": 34.5, "thinking-2506": 52.8},
            points=True,
        ),
        Board(
            "mmlongbench-doc",
            "MMLongBench-Doc",
            "doc_id, question, answer and answer_format",
            _mmlongbench,
            {"instruct": 35.1, "thinking": 32.5, "thinking-2506": 42.1},
            note="not comparable: answers are extracted by rule, where the official script asks a model",
        ),
    )
}
