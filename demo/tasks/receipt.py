"""A receipt: rows of items with prices, and their sum."""

from __future__ import annotations

import numpy as np

from ..draw import Canvas, paper_and_ink, width_of
from ..example import Box, Example, Turn
from ..words import SHOPS, cased, invented_word, items, money, price, real_word
from .phrases import DATE, N_ITEMS, NTH, NTH_ITEM, PRICE_OF, SHOP, TAX, TOTAL, one, pick
from .words import pick_face, sized

TOTAL_WORDS = (
    *("TOTAL", "Total", "TOTAL", "Total", "Total:", "TOTAL:"),
    *("Sum", "SUM", "Amount due", "To pay", "Grand total"),
)


def _item(rng: np.random.Generator, split: str, longest: int) -> str:
    while True:
        kind = rng.random()
        if kind < 0.6:
            word = one(rng, items(split))
        elif kind < 0.8:
            word = real_word(rng, split, 9)
        else:
            word = invented_word(rng, split, 8)
        if 2 <= len(word) <= longest:
            return word


def draw(rng: np.random.Generator, split: str, difficulty: float, size: tuple[int, int]) -> Example:
    width, height = size
    paper, ink = paper_and_ink(rng, difficulty * 0.7)
    canvas = Canvas(size, paper)
    face = pick_face(rng, split, difficulty)
    n_columns = float(rng.uniform(14, 21))
    if rng.random() > difficulty:
        n_columns = 16.0
    margin = float(rng.uniform(4, 12))
    advance = min(15.0, max(9.0, (width - 2 * margin) / n_columns))
    printed = sized(face, advance)
    pitch = max(21.0, printed.size * float(rng.uniform(1.15, 1.5)))
    most_lines = int((height - 8) / pitch)
    sign = ("$", "$", "€", "£", "")[int(rng.integers(5))]
    style = rng.random()  # of the names' letters
    has_title, has_date = rng.random() < 0.5, rng.random() < 0.2
    has_tax, has_rule = rng.random() < 0.15, rng.random() < 0.5
    n_rows = int(rng.integers(2, 6))
    n_rows = max(1, min(n_rows, most_lines - has_title - has_date - 1 - 2 * has_tax))

    def name_of(text: str) -> str:
        return text if style < 0.3 else text.upper() if style < 0.55 else text.capitalize()

    room = width - 2 * margin
    rows: list[tuple[str, int]] = []
    while len(rows) < n_rows:
        item = name_of(_item(rng, split, 12))
        digits = price(rng, "", 60).replace(".", "")
        longest = width_of(item, printed) + width_of(money(int(digits), sign), printed) + advance * 1.5
        if longest <= room and item.lower() not in [other.lower() for other, _ in rows]:
            rows.append((item, int(digits)))
        elif rng.random() < 0.02 and rows:
            break
    subtotal = sum(cents for _, cents in rows)
    has_tax = has_tax and width_of("SUBTOTAL" + money(subtotal, sign), printed) + advance < room
    tax = round(subtotal * float(rng.uniform(0.04, 0.2))) if has_tax else 0
    total = subtotal + tax
    turns: list[Turn] = []
    lines: list[tuple[str, str]] = []
    if has_title:
        shop = cased(rng, one(rng, SHOPS) if split == "train" and rng.random() < 0.3 else invented_word(rng, split, 8))
        lines.append((shop, ""))
        turns.append(Turn(pick(rng, SHOP), shop, "shop"))
    if has_date:
        date = f"{int(rng.integers(1, 29)):02d}/{int(rng.integers(1, 13)):02d}/{int(rng.integers(10, 30))}"
        lines.append((date, ""))
        turns.append(Turn(pick(rng, DATE), date, "date"))
    lines += [(item, money(cents, sign)) for item, cents in rows]
    if has_tax:
        lines.append((one(rng, ("Subtotal", "SUBTOTAL")), money(subtotal, sign)))
        lines.append((one(rng, ("Tax", "TAX", "VAT")), money(tax, sign)))
        turns.append(Turn(pick(rng, TAX), money(tax, sign), "receipt_tax"))
    word = one(rng, TOTAL_WORDS)
    if width_of(word, printed) + width_of(money(total, sign), printed) + advance > room:
        word = "Total"
    lines.append((word, money(total, sign)))

    angle = float(rng.uniform(-2.5, 2.5)) if rng.random() < 0.25 * difficulty else 0.0
    slack = height - 8 - pitch * len(lines)
    base = 4 + printed.size * 0.85 + max(0.0, slack) * float(rng.uniform(0, 1))
    leader = rng.random() < 0.1
    lefts: list[list[list[Box]]] = []  # of every line's characters
    rights: list[list[list[Box]]] = []
    for i, (left, right) in enumerate(lines):
        y = round(base + i * pitch)
        is_title = not right
        x = margin if right or rng.random() < 0.3 else (width - width_of(left, printed)) / 2
        lefts.append([[canvas.turned(box, angle)] for box in canvas.text(round(x), y, left, printed, ink)])
        rights.append([])
        if right:
            at = width - margin - width_of(right, printed)
            rights[-1] = [[canvas.turned(box, angle)] for box in canvas.text(round(at), y, right, printed, ink)]
            dot = width_of(".", printed)
            if leader:
                x = margin + width_of(left, printed) + dot
                while x + 2 * dot < at:
                    canvas.draw.text((x, y), ".", fill=ink, font=printed, anchor="ls")
                    x += 2 * dot
        if has_rule and not is_title and i == len(lines) - 2:
            rule = y + (pitch - printed.size * 0.75) / 2 + 1
            canvas.draw.line((margin, rule, width - margin, rule), fill=ink, width=1)
    image, glyphs, colours = canvas.finish(rng, difficulty, angle)

    turns.insert(0, Turn(pick(rng, TOTAL), money(total, sign), "receipt_total"))
    looks = {"shop": lefts[0], "date": lefts[has_title], "receipt_tax": rights[-2], "receipt_total": rights[-1]}
    for turn in turns:
        turn.looks = looks[turn.task]
    lefts, rights = lefts[has_title + has_date :], rights[has_title + has_date :]
    asked = rng.permutation(len(rows))[: int(rng.integers(2, 4))]
    for i in asked:
        item, cents = rows[int(i)]
        spelled = item if rng.random() < 0.4 else item.lower()
        question = pick(rng, PRICE_OF, item=spelled)
        turn = Turn(question, money(cents, sign), "receipt_price", looks=rights[int(i)], asked=lefts[int(i)])
        turn.asked_from = question.rindex(spelled)
        turns.append(turn)
    extra = rng.random()
    if extra < 0.2:
        turns.append(Turn(pick(rng, N_ITEMS), str(len(rows)), "receipt_items"))
    elif extra < 0.5:
        i = int(rng.integers(len(rows)))
        if i < len(NTH):
            turns.append(Turn(pick(rng, NTH_ITEM, nth=NTH[i]), rows[i][0], "receipt_item", looks=lefts[i]))
    return Example(image, glyphs, colours, turns)
