"""Scores of answers by the benchmarks' published rules. Text in, a number out; no model, no files."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence

from ...errors import GroundingError
from ...grounding import parse
from ...grounding.mapping import Plan, unpadded

UNANSWERABLE = "Not answerable"


def distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def letter(answer: str, options: Mapping[str, str]) -> str | None:
    """MMMU's rule for multiple choice: the last letter in brackets; else the last one on its own; else the option
    whose text occurs last. None: no option is named (where the official script guesses at random)."""
    text = f" {answer.strip(',.!?;: ' + chr(39) + chr(34))} "
    found = {c: text.rfind(f"({c})") for c in options if f"({c})" in text}
    if not found:
        found = {c: text.rfind(f" {c} ") for c in options if f" {c} " in text}
    if not found:
        found = {c: max(text.rfind(f" {c}."), text.rfind(f" {c}:")) for c in options}
        found = {c: place for c, place in found.items() if place >= 0}
    if not found:
        lower = text.lower()
        found = {c: lower.rfind(said.lower()) for c, said in options.items() if said and said.lower() in lower}
    return max(found, key=lambda c: found[c]) if found else None


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA and InfographicVQA: the best of the accepted answers, without
    case and doubled white space; 0 below 0.5."""
    got = " ".join(answer.lower().split())
    best = 0.0
    for one in accepted:
        want = " ".join(str(one).lower().split())
        longest = max(len(got), len(want))
        best = max(best, 1.0 - distance(got, want) / longest if longest else 1.0)
    return best if best >= 0.5 else 0.0


def contains(answer: str, accepted: Sequence[str], *, formula: bool) -> bool:
    """OCRBench's: an accepted text is part of the answer, in any case; formulas (HME100k) without white space, in their
    own case."""
    if formula:
        got = re.sub(r"\s", "", answer)
        return any(re.sub(r"[\n ]", "", str(one).strip()) in got for one in accepted)
    got = answer.lower().strip().replace("\n", " ")
    return any(str(one).lower().strip().replace("\n", " ") in got for one in accepted)


_SAID = re.compile(r"(?i)(?:the\s+(?:final\s+)?answer\s+is|answer\s*[:：]|\\boxed\{)\s*[:：]?\s*(.+)")


def final(answer: str) -> str:
    """What an answer says that the answer is: after "the answer is" or "Answer:", in \\boxed{}; else all of it."""
    said = _SAID.findall(answer)
    text = said[-1] if said else answer
    return text.strip().strip("*$").rstrip("}.。 ").strip('"' + chr(39)).strip()


def mathvista(answer: str, want: str, *, choices: Sequence[str], answer_type: str, precision: int) -> bool | None:
    """MathVista's comparison, after an extraction by rule. None: what was meant needs a judge."""
    text = final(answer)
    if choices:
        letters = {chr(ord("A") + i): choice for i, choice in enumerate(choices)}
        said = re.findall(r"\(([A-Za-z])\)", text)
        name = said[0].upper() if said else text if text in letters else None
        if name is None:
            matching = [choice for choice in choices if choice == text]
            if not matching:
                name = letter(answer, letters)
            else:
                return matching[0] == want
        return None if name not in letters else letters[name] == want
    if answer_type == "text":
        return True if text == want else None
    if answer_type == "list":
        return _list(text) == _list(want) if text.startswith("[") else None
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if len(set(numbers)) != 1:
        return None
    number = float(numbers[0].replace(",", ""))
    return str(int(number) if answer_type == "integer" else round(number, precision)) == want


def _list(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def inside(answer: str, box: Sequence[float], size: tuple[int, int], plan: Plan | None = None) -> bool:
    """ScreenSpot's: the point (of a box its middle) lies in x0, y0, x1, y1 of a picture of size width, height. plan:
    for shares of the picture with the margin that it adds; None for those of the picture."""
    try:
        found = parse.parse(answer, size)
    except GroundingError:
        return False
    x0, y0, x1, y1 = found.places[0].numbers
    share = (x0 + x1) / 2, (y0 + y1) / 2
    if plan is not None:
        share = unpadded(share, *plan(*size))
    x, y = share[0] * size[0], share[1] * size[1]
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


_NUMBER_OR_DATE = re.compile(r"\d+(?:[- ]\d+)?|\d{4}[- ]\d\d[- ]\d\d")
_MAIL = re.compile(r"\S+@\S+\.\w\w+")


def _is_exact(text: str) -> bool:
    """Whether nothing but the same text will do: addresses, code files, pages, times, telephone numbers and dates."""
    marks = "https://" in text or "a.m." in text or "p.m." in text
    ends = text.startswith("page") or text.endswith((".py", "ipynb"))
    return bool(marks or ends or _NUMBER_OR_DATE.fullmatch(text) or _MAIL.fullmatch(text))


def document(answer: str, want: str, kind: str) -> float:
    """MMLongBench-Doc's score by the format of the answer (Int, Float, Str, None, List), from the answer as it stands:
    the official script lets another model extract it first."""
    text = final(answer)
    if re.search(r"(?i)not answerable|cannot be (?:answered|determined)", text):
        text = UNANSWERABLE
    if kind == "Int":
        found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        return float(bool(found) and _is_number(want) and int(float(found[0])) == int(float(want)))
    if kind == "Float":
        found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        wanted = _clean(want)
        return float(bool(found) and _is_number(wanted) and _close(float(wanted), float(found[0])))
    if kind == "List":
        return _lists(want, text)
    return _texts(_clean(want), _clean(text))


def _texts(want: str, got: str) -> float:
    if _is_exact(want):
        return float(want == got)
    longest = max(len(want), len(got))
    similarity = 1.0 - (distance(want, got) / longest if longest else 0.0)
    return similarity if similarity > 0.5 else 0.0


def _lists(want: str, text: str) -> float:
    wanted = _list(want) if want.startswith("[") else want
    value = _list(text) if text.startswith("[") else re.split(r",\s*|\n+|\s+and\s+", text)
    expected = sorted(_clean(str(one)) for one in (wanted if isinstance(wanted, list) else [wanted]))
    got = sorted(_clean(str(one)) for one in (value if isinstance(value, list) else [value]) if str(one).strip())
    if len(expected) != len(got) or not expected:
        return 0.0
    if _is_number(expected[0]) or _is_exact(expected[0]):
        return float(expected == got)
    return min(_texts(a, b) for a, b in zip(expected, got, strict=True))


def _clean(text: str) -> str:
    """Without case, remarks in brackets, one quotation mark at each end, dollar and percent signs."""
    first, *others = text.lower().split("(")
    kept = first + "".join(part.partition(")")[2] if ")" in part else "(" + part for part in others)
    text = " ".join(kept.split())
    text = text[1:] if text[:1] in ("'", '"') else text
    text = text[:-1] if text[-1:] in ("'", '"') else text
    return text.strip().lstrip("$").strip().rstrip("%").strip()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _close(want: float, got: float) -> bool:
    """Within 1 %, as a share or as a percentage."""
    return any(
        math.isclose(one, got, rel_tol=0.01) or round(one, 2) == round(got, 2) for one in (want / 100, want, want * 100)
    )
