"""The pictures of examples/, composed by hand: what a person would try first.

    python -m demo.render_examples examples

The built-in model is asked; what it reads wrong is left out, but for two pictures that are beyond it. "right" in
questions.json tells which is which.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.evaluation.judge import Judge
from kimi_vl_cpp.evaluation.questions import Question

from .draw import PALETTE, Colour
from .fonts import font
from .tasks.shapes import outline

Size = tuple[int, int]

BEYOND_IT = ("note.png", "chart.png")  # handwriting and charts: kept to show where the model ends


def receipt(
    size: Size, face: str, points: int, title: str, rows: list[tuple[str, str]], paper: Colour, ink: Colour
) -> Image.Image:
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    printed = font(face, points)
    y = points + 10.0
    if title:
        draw.text((size[0] / 2, y), title, fill=ink, font=printed, anchor="ms")
        y += points * 1.5
    for i, (left, right) in enumerate(rows):
        if i == len(rows) - 1:
            draw.line((10, y - points * 1.05, size[0] - 10, y - points * 1.05), fill=ink)
            y += points * 0.2
        draw.text((10, y), left, fill=ink, font=printed, anchor="ls")
        draw.text((size[0] - 10, y), right, fill=ink, font=printed, anchor="rs")
        y += points * 1.35
    return image


def sign(size: Size, face: str, points: int, lines: list[str], paper: Colour, ink: Colour, frame: bool) -> Image.Image:
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    if frame:
        draw.rounded_rectangle((3, 3, size[0] - 4, size[1] - 4), 8, outline=ink, width=2)
    printed = font(face, points)
    first = size[1] / 2 - (len(lines) - 1) * points * 0.65 + points * 0.35
    for i, line in enumerate(lines):
        draw.text((size[0] / 2, first + i * points * 1.3), line, fill=ink, font=printed, anchor="ms")
    return image


def shapes(size: Size, things: list[tuple[str, str, float, float, float]]) -> Image.Image:
    """things: kind, colour, x, y, radius."""
    large = Image.new("RGB", (size[0] * 4, size[1] * 4), (255, 255, 255))
    draw = ImageDraw.Draw(large)
    for kind, colour, x, y, r in things:
        x, y, r = 4 * x, 4 * y, 4 * r
        if kind == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=PALETTE[colour])
        else:
            draw.polygon(outline(kind, x, y, r, 0.0), fill=PALETTE[colour])
    return large.resize(size, Image.Resampling.LANCZOS)


def note(size: Size, face: str, points: int, lines: list[str]) -> Image.Image:
    image = Image.new("RGB", size, (255, 252, 240))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((14, 16 + points + i * points * 1.4), line, fill=(30, 40, 120), font=font(face, points), anchor="ls")
    return image


def chart(size: Size) -> Image.Image:
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    small: ImageFont.FreeTypeFont = font("DejaVuSans", 11)
    for i, value in enumerate((3, 7, 4, 9, 6)):
        x = 30 + i * 44
        draw.rectangle((x, size[1] - 30 - value * 16, x + 30, size[1] - 30), fill=PALETTE["blue"])
        draw.text((x + 15, size[1] - 14), "MTWTF"[i], fill=(0, 0, 0), font=small, anchor="ms")
    points = [(45 + i * 44, size[1] - 60 - 40 * math.sin(i)) for i in range(5)]
    draw.line(points, fill=PALETTE["red"], width=2)
    return image


def compose() -> list[tuple[str, Image.Image, list[dict[str, Any]]]]:
    """Name, picture, questions with their answers."""
    white, black, cream = (255, 255, 255), (15, 15, 15), (250, 246, 232)
    found: list[tuple[str, Image.Image, list[dict[str, Any]]]] = []

    def add(name: str, image: Image.Image, *questions: tuple[str, str]) -> None:
        asked = []
        for question, answer in questions:
            asked.append({"question": question, "answers": [answer]})
        found.append((name, image, asked))

    rows = [("Coffee", "$3.20"), ("Bagel", "$2.75"), ("Juice", "$4.10"), ("Total", "$10.05")]
    add(
        "receipt.png",
        receipt((224, 196), "DejaVuSansMono", 20, "CORNER CAFE", rows, white, black),
        ("What is the total?", "$10.05"),
        ("How much is the bagel?", "$2.75"),
    )
    rows = [("MILK", "1.19"), ("RICE", "2.49"), ("SOAP", "0.89"), ("LAMP", "12.50"), ("TOTAL", "17.07")]
    add(
        "groceries.png",
        receipt((224, 224), "OpenSans-Regular", 21, "", rows, cream, (40, 30, 60)),
        ("What is the total?", "17.07"),
        ("What is the price of the lamp?", "12.50"),
    )
    rows = [("Tea", "£2.40"), ("Scone", "£3.15"), ("Total", "£5.55")]
    add(
        "tea.png",
        receipt((196, 168), "Gentium-R", 24, "", rows, (30, 34, 48), (235, 235, 225)),
        ("How much do I have to pay?", "£5.55"),
    )
    add(
        "sign.png",
        sign((196, 84), "Cabin-Bold", 30, ["Platform 9"], (20, 70, 150), white, True),
        ("What does the sign say?", "Platform 9"),
    )
    add(
        "door.png",
        sign((140, 112), "OpenSans-Bold", 30, ["PULL", "HERE"], (245, 215, 60), black, False),
        ("What does the first line say?", "PULL"),
        ("What is on the second line?", "HERE"),
    )
    add(
        "price_tag.png",
        sign((140, 84), "Cousine-Bold", 32, ["$24.99"], white, (190, 20, 30), True),
        ("What is the price?", "$24.99"),
    )
    add(
        "clock.png",
        sign((112, 56), "Cousine-Regular", 28, ["18:45"], (20, 20, 20), (90, 230, 120), False),
        ("What does it say?", "18:45"),
    )
    things = [
        ("circle", "red", 42, 44, 24),
        ("star", "blue", 150, 50, 26),
        ("square", "green", 50, 150, 22),
        ("triangle", "orange", 150, 146, 26),
    ]
    add(
        "shapes.png",
        shapes((196, 196), things),
        ("How many shapes are there?", "4"),
        ("What color is the star?", "blue"),
        ("Where is the square?", "bottom left"),
        ("What shape is orange?", "triangle"),
    )
    add(
        "heart.png",
        shapes((140, 140), [("heart", "purple", 70, 72, 32)]),
        ("What shape is this?", "heart"),
        ("What colour is it?", "purple"),
    )
    things = [
        ("circle", "yellow", 40, 40, 20),
        ("circle", "black", 120, 60, 22),
        ("hexagon", "pink", 60, 120, 22),
        ("circle", "green", 150, 140, 18),
    ]
    add("circles.png", shapes((196, 196), things), ("How many circles are there?", "3"))
    things = [("diamond", "cyan", 50, 110, 26), ("cross", "brown", 118, 46, 24)]
    add(
        "two.png",
        shapes((168, 168), things),
        ("What colour is the cross?", "brown"),
        ("What shape is cyan?", "diamond"),
    )
    add(
        "label.png",
        sign((168, 84), "OpenSans-Regular", 28, ["Honey"], cream, (90, 50, 10), False),
        ("Read the word.", "Honey"),
    )
    rows = [("Soup", "$6.50"), ("Water", "$1.80"), ("Total", "$8.30")]
    add(
        "lunch.png",
        receipt((196, 168), "LiberationSans-Regular", 24, "", rows, white, black),
        ("What is the total?", "$8.30"),
    )
    rows = [("Lemon", "0.75"), ("Bread", "2.20"), ("Honey", "5.40"), ("Total", "8.35")]
    add(
        "market.png",
        receipt((196, 196), "Cousine-Regular", 21, "", rows, cream, black),
        ("How much is it in total?", "8.35"),
    )
    rows = [("HAMMER", "£12.00"), ("ROPE", "£4.50"), ("TOTAL", "£16.50")]
    add(
        "tools.png",
        receipt((224, 168), "DejaVuSans", 22, "", rows, white, (20, 30, 90)),
        ("What is the total?", "£16.50"),
    )
    for name, face, points, text in (
        ("exit.png", "OpenSans-Bold", 34, "EXIT"),
        ("tag.png", "DejaVuSansMono", 28, "$7.50"),
        ("open.png", "LiberationSans-Bold", 32, "Open"),
        ("number.png", "DejaVuSans", 32, "42"),
        ("sale.png", "DejaVuSans-Bold", 30, "SALE"),
        ("euro.png", "Cousine-Regular", 28, "€3.20"),
    ):
        add(name, sign((140, 84), face, points, [text], white, black, False), ("What does it say?", text))
    add(
        "square.png",
        shapes((140, 140), [("square", "green", 70, 70, 30)]),
        ("What shape is this?", "square"),
        ("What color is it?", "green"),
    )
    add(
        "star.png",
        shapes((140, 140), [("star", "yellow", 60, 74, 34)]),
        ("What shape is this?", "star"),
        ("What colour is this?", "yellow"),
    )
    things = [("triangle", "red", 50, 60, 26), ("triangle", "blue", 130, 110, 26)]
    add("triangles.png", shapes((196, 168), things), ("How many shapes are there?", "2"))
    lines = ["Dear Ada, thank you", "for the lovely roses.", "See you on Sunday!"]
    add("note.png", note((252, 140), "Z003-MediumItalic", 24, lines), ("What does it say?", " ".join(lines)))
    add("chart.png", chart((252, 224)), ("Which day was the highest?", "T"))
    return found


def ask(model: KimiVL, path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """The line of questions.json, with what the model got right."""
    asked = Question(path.name, "example", path, question["question"], tuple(question["answers"]))
    answer = model.chat(asked.question, images=[path]).text
    print(f"{path.name}: {asked.question} {answer}")
    return {"image": path.name, **question, "right": Judge([asked]).exact(asked, answer)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    with KimiVL.builtin() as model:
        for name, image, questions in compose():
            path = args.folder / name
            image.save(path, optimize=True)
            found = [ask(model, path, question) for question in questions]
            kept = [line for line in found if line["right"] or name in BEYOND_IT]
            lines += kept
            if not kept:
                path.unlink()
    (args.folder / "questions.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
