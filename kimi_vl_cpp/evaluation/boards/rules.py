"""Scores of answers by the benchmarks' published rules. Text in, a number out; no model, no files."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence

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
    """MMMU's rule for multiple choice: the last letter in brackets; else the last one on its own; else, in an answer of
    more than five words, the option whose text occurs last. Where the official script then guesses at random: a letter
    before a dot, colon or bracket, or the text of an option in a short answer; None: no option is named."""
    text = answer
    for mark in ",.!?;:" + chr(39):
        text = text.strip(mark)
    text = f" {text} "

    def last(place: Callable[[str], int]) -> str | None:
        found = {c: place(c) for c in options}
        best = max(found, key=lambda c: found[c])
        return best if found[best] >= 0 else None

    def said(c: str) -> int:
        return text.lower().rfind(options[c].lower()) if options[c] else -1

    named = last(lambda c: text.rfind(f"({c})")) or last(lambda c: text.rfind(f" {c} "))
    if named is None and len(text.split()) > 5:
        named = last(said)
    if named is None:
        text = f" {answer.strip(',.!?;: ' + chr(39) + chr(34))} "
        named = last(lambda c: text.rfind(f" {c} "))
    return named or last(lambda c: max(text.rfind(f" {c}{mark}") for mark in ".:)")) or last(said)


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d*\.\d+|\d+\b)(?![\d,]|[eE][+-]?\d)"),
)


def open_question(answer: str, accepted: Sequence[str]) -> bool:
    """MMMU's rule for questions without options. Of each line counts the shortest rest behind a word that announces an
    answer, of the last line behind "=" too; where no line has one, the whole answer. Right is an accepted text that
    occurs in what counts, or an accepted number, to two decimals, that is one of its numbers."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    counted = []
    for number, line in enumerate(lines, 1):
        shortest = ""
        for indicator in (*_INDICATORS, *(["="] if number == len(lines) else [])):
            if indicator in line:
                rest = line.rpartition(indicator)[2].strip()
                shortest = rest if not shortest or len(rest) < len(shortest) else shortest
        if shortest and shortest not in ",.!?;:" + chr(39):
            counted.append(shortest)
    counted = counted or [whole]
    numbers = [found for text in counted for pattern in _NUMBERS for found in pattern.findall(text)]
    said = [value for text in (*counted, *numbers) for value in _values(text)]
    wanted = [value for one in accepted for value in _values(str(one))]
    texts = [one for one in said if isinstance(one, str)]
    return any(any(one in text for text in texts) if isinstance(one, str) else one in said for one in wanted)


def _values(text: str) -> tuple[float | str, ...]:
    """A number to two decimals, or a text as it is looked for: a single letter only beside a space."""
    text = text.strip().lower()
    try:
        return (round(float(text.replace(",", "")), 2),)
    except ValueError:
        return (f" {text}", f"{text} ") if len(text) == 1 else (text,)


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA and InfographicVQA: the best of the accepted answers, without
    case and doubled white space, over the longer of the two as they were written; 0 below 0.5."""
    got = " ".join(answer.lower().split())
    best = 0.0
    for one in accepted:
        longest = max(len(answer), len(str(one)))
        best = max(best, 1.0 - distance(got, " ".join(str(one).lower().split())) / longest if longest else 1.0)
    return best if best >= 0.5 else 0.0


def contains(answer: str, accepted: Sequence[str], *, formula: bool) -> bool:
    """OCRBench's: an accepted text is part of the answer, in any case; formulas (HME100k) without white space, in their
    own case."""
    if formula:
        got = re.sub(r"[\n ]", "", answer.strip())
        return any(re.sub(r"[\n ]", "", str(one).strip()) in got for one in accepted)
    got = answer.lower().strip().replace("\n", " ")
    return any(str(one).lower().strip().replace("\n", " ") in got for one in accepted)


_ANNOUNCED = re.compile(r"(?i)(?:the\s+(?:final\s+)?answer\s+is|answer\s*[:：])\s*[:：]?\s*(.+)")
_BOX = "\\boxed{"


def stated(answer: str) -> str | None:
    """What an answer says that the answer is: what is in its last \\boxed{}, or behind a later "the answer is" or
    "Answer:"; None: it does not say so."""
    said = list(_ANNOUNCED.finditer(answer))
    box = answer.rfind(_BOX)
    if box >= 0 and not (said and said[-1].start() > box):
        return _bare(_in_braces(answer, box + len(_BOX)))
    return _bare(said[-1][1]) if said else None


def final(answer: str) -> str:
    """What an answer says that the answer is; else all of it."""
    found = stated(answer)
    return _bare(answer) if found is None else found


def _in_braces(text: str, start: int) -> str:
    """From start to the brace that closes the one before it, or to the end of the line."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:].partition("\n")[0]


def _bare(text: str) -> str:
    return text.strip().strip("*$").rstrip(".。 ").strip('"' + chr(39)).strip()


def mathvista(answer: str, want: str, *, choices: Sequence[str], answer_type: str, precision: int) -> bool | None:
    """MathVista's comparison, after an extraction by rule. Of what an answer says that the answer is, the letter of a
    choice counts, or else the choice that is most like it. None: what was meant needs a judge."""
    said = stated(answer)
    text = _bare(answer) if said is None else said
    if choices:
        letters = {chr(ord("A") + i): choice for i, choice in enumerate(choices)}
        named = re.findall(r"\(([A-Za-z])\)", text)
        name = named[0].upper() if named else text
        if name in letters:
            return letters[name] == want
        if said is not None or text in choices:
            return min(choices, key=lambda choice: distance(name, choice)) == want
        meant = letter(answer, letters)
        return None if meant is None else letters[meant] == want
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
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    if plan is not None:
        x, y = unpadded((x, y), *plan(*size))
    width, height = size
    return box[0] / width <= x <= box[2] / width and box[1] / height <= y <= box[3] / height


_NUMBER_OR_DATE = re.compile(r"\d+(?:-\d+|\s\d+)?|\d{4}[-\s]\d\d[-\s]\d\d")
_MAIL = re.compile(r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}")


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
    return max(_texts(_clean(want), _clean(one)) for one in (text, answer))


def _texts(want: str, got: str) -> float:
    return float(want == got) if _is_exact(want) else _similarity(want, got)


def _similarity(want: str, got: str) -> float:
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
    if _is_number(expected[0]) or _is_exact(expected[0]):  # the official script asks the first alone
        return float(expected == got)
    return min(_similarity(a, b) for a, b in zip(expected, got, strict=True))


def _clean(text: str) -> str:
    """Without case, remarks in brackets, one quotation mark at each end, dollar and percent signs."""
    text = _without_remarks(text.lower().strip()).strip()
    text = text[1:] if text[:1] in ("'", '"') else text
    text = text[:-1] if text[-1:] in ("'", '"') else text
    return text.strip().lstrip("$").strip().rstrip("%").strip()


def _without_remarks(text: str) -> str:
    """What stands outside of brackets, each with the white space before it."""
    kept, at = [], 0
    while (opening := text.find("(", at)) >= 0 and (closing := text.find(")", opening)) >= 0:
        kept.append(text[at:opening].rstrip())
        at = closing + 1
    return "".join(kept) + text[at:]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _close(want: float, got: float) -> bool:
    """Within 1 %, or the same to as many decimals as both have, at least two; as a share or as a percentage."""
    return any(
        math.isclose(one, got, rel_tol=0.01) or round(one, n) == round(got, n)
        for one in (want / 100, want, want * 100)
        for n in [max(min(_decimals(one), _decimals(got)), 2)]
    )


def _decimals(value: float) -> int:
    _, point, decimals = str(value).partition(".")
    return len(decimals) if point else 3
