"""Pointing: what answers mean, which pixels, and the requests."""

from __future__ import annotations

import json

import fake_core
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kimi_vl_cpp import cli
from kimi_vl_cpp.errors import BadRequest, GroundingError
from kimi_vl_cpp.grounding import mapping, overlay, parse
from kimi_vl_cpp.grounding.ask import Box, Point
from kimi_vl_cpp.media.processor import ImageProcessor
from kimi_vl_cpp.model import KimiVL

SIZE = (1000, 500)

POINTS = [
    ("click(x=0.884, y=0.144)", [(0.884, 0.144)]),
    ("## Action:\nclick\n## Code:\n```python\npyautogui.click(x=0.204, y=0.149)\n```", [(0.204, 0.149)]),
    ("(0.25, 0.75)", [(0.25, 0.75)]),
    ("x=0.25, y=0.75", [(0.25, 0.75)]),
    ("[0.25, 0.75]", [(0.25, 0.75)]),
    ('{"x": 0.25, "y": 0.75}', [(0.25, 0.75)]),
    ("x: .5, y: .125", [(0.5, 0.125)]),
    ("x=5e-1, y=1e-3", [(0.5, 0.001)]),
    ("x=1, y=0", [(1, 0)]),
    ("在 (0.5, 0.25) 处点击", [(0.5, 0.25)]),
    ("pyautogui.click(0.5, 0.25, clicks=2)", [(0.5, 0.25)]),
    ("click(x=0.1, y=0.2) or click(x=0.3, y=0.4)", [(0.1, 0.2), (0.3, 0.4)]),
    ("The old one (0.9, 0.9):\n```\nclick(x=0.1, y=0.2)\n```", [(0.1, 0.2)]),
    ("```\nclick(x=0.1, y=0.2)\n```\n```\nclick(x=0.3, y=0.4)\n```", [(0.3, 0.4)]),
    ("```\nno place\n```\n(0.3, 0.4)", [(0.3, 0.4)]),
    ("```python\nclick(x=0.3, y=0.4)", [(0.3, 0.4)]),
    ('{"bbox_2d": [0.280, 0.500, 0.520, 0.700]}', [(0.4, 0.6)]),
    ("(0.28, 0.5, 0.52, 0.7)", [(0.4, 0.6)]),
    ("bbox: (0.28, 0.5), (0.52, 0.7)", [(0.4, 0.6)]),
    ('{"x1": 0.28, "y1": 0.5, "x2": 0.52, "y2": 0.7}', [(0.4, 0.6)]),
]


@pytest.mark.parametrize(("answer", "expected"), POINTS)
def test_every_form_of_an_answer_is_understood(answer, expected):
    found = parse.parse(answer, SIZE)
    middles = [((p.numbers[0] + p.numbers[2]) / 2, (p.numbers[1] + p.numbers[3]) / 2) for p in found.places]
    assert middles == [pytest.approx(point) for point in expected]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "It is in the top left corner.",
        "pyautogui.click(screen_width * 0.5, screen_height * 0.5)",
        "pyautogui.click(x=0.5 * width, y=0.5 * height)",
        "x=nan, y=0.5",
        "x=50%, y=20%",
        "[1, 2, 3]",
        "version 0.5, 0.6",
        "[" * 400,
        "x=0.5",
    ],
)
def test_an_answer_without_a_place_is_quoted(answer):
    with pytest.raises(GroundingError) as caught:
        parse.parse(answer, SIZE)
    assert caught.value.code == "grounding.no_point" and len(str(caught.value)) < 250


def test_numbers_above_one_are_not_guessed():
    with pytest.raises(GroundingError) as caught:
        parse.parse("(412, 88)", SIZE)
    assert caught.value.code == "grounding.scale"
    assert parse.parse("(412, 88)", SIZE, units="pixels").places[0].numbers[:2] == pytest.approx((0.412, 0.176))
    assert parse.parse("(412, 88)", SIZE, units="thousandths").places[0].numbers[:2] == pytest.approx((0.412, 0.088))
    with pytest.raises(GroundingError) as caught:
        parse.parse("(1412, 88)", SIZE, units="pixels")
    assert caught.value.code == "grounding.range"


def test_a_share_just_beyond_the_edge_is_the_edge_with_a_notice():
    found = parse.parse("(1.004, -0.004)", SIZE)
    assert found.places[0].numbers[:2] == (1, 0) and len(found.notices) == 2


@given(st.text(alphabet="xy=:,.0123456789()[]{}\"'`-+e bo\n*", max_size=120))
def test_any_answer_gives_places_or_a_typed_error(text):
    try:
        found = parse.parse(text, SIZE)
    except GroundingError:
        return
    assert found.places and all(0 <= share <= 1 for place in found.places for share in place.numbers)


# Pixels


@given(st.integers(1, 2000), st.integers(1, 1500), st.sampled_from(["unpadded", "padded"]), st.data())
def test_a_pixel_comes_back_from_its_share(width, height, kind, data):
    seen = ImageProcessor(in_token_limit=256)._padded(np.zeros((1, 1, 3), np.uint8), (width, height), (28, 28), [])
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    assert mapping.to_pixel(mapping.to_share((x, y), seen, kind), seen, kind) == (x, y)


def test_the_two_mappings_differ_by_the_margin():
    seen = ImageProcessor()(np.zeros((100, 100, 3), np.uint8))
    assert mapping.to_pixel((0.5, 0.25), seen) == (50, 25)
    assert mapping.to_pixel((0.5, 0.25), seen, "padded") == (56, 28)
    assert mapping.to_pixel((1, 1), seen, "padded") == (99, 99)


def test_shares_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif)
    seen = ImageProcessor()(tmp_path / "turned.jpg")
    assert mapping.to_pixel((1, 1), seen) == (99, 199)


@given(st.integers(1, 700), st.integers(1, 700), st.text(max_size=80), st.data())
def test_the_pixel_that_is_meant_is_not_painted_over(width, height, label, data):
    image = Image.new("RGB", (width, height), "grey")
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    marked = overlay.draw(image, [Point(x, y, (0, 0))])
    assert marked.size == image.size and marked.getpixel((x, y)) == image.getpixel((x, y))
    assert overlay.draw(image, [Point(x, y, (0, 0))], label).size == image.size


def test_a_frame_stands_around_its_box():
    image = Image.new("RGB", (600, 400), "grey")
    marked = overlay.draw(image, [Box(200, 150, 300, 240, "a box", (0, 0, 1, 1))])
    inside = marked.crop((200, 150, 301, 241))
    assert inside.tobytes() == image.crop((200, 150, 301, 241)).tobytes()
    assert all(marked.getpixel(at) != image.getpixel(at) for at in ((197, 200), (303, 200), (250, 147), (250, 243)))


# Requests


@pytest.fixture
def script(monkeypatch):
    return fake_core.install(monkeypatch)


@pytest.fixture
def model(script):
    with KimiVL("fake-Instruct.gguf", n_ctx=4096) as loaded:
        yield loaded


PICTURE = np.zeros((100, 200, 3), np.uint8)


def test_a_point_in_pixels_of_the_source(model, script):
    script.answer = "```python\npyautogui.click(x=0.5, y=0.25)\n```"
    point = model.point(PICTURE, "the search box")
    assert (point.x, point.y, point.share, point.raw) == (100, 25, (0.5, 0.25), script.answer)


def test_several_points(model, script):
    script.answer = "click(x=0.5, y=0.25)\nclick(x=0.1, y=0.2)\nclick(x=0.9, y=0.9)"
    assert [(p.x, p.y) for p in model.point(PICTURE, "every box", n=None)] == [(100, 25), (20, 20), (180, 90)]
    assert len(model.point(PICTURE, "every box", n=2)) == 2


def test_what_is_not_there(model, script):
    script.answer = "Not there."
    assert model.point(PICTURE, "x", may_be_absent=True) is None
    assert model.point(PICTURE, "x", n=None, may_be_absent=True) == []
    with pytest.raises(GroundingError):
        model.point(PICTURE, "x")


def test_boxes_with_labels(model, script):
    boxes = [{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "label": "OK"}, {"bbox_2d": [0.5, 0.5, 1, 1], "label": "No"}]
    script.answer = json.dumps(boxes)
    found = model.detect(PICTURE, "buttons")
    assert [(b.x0, b.y0, b.x1, b.y1, b.label) for b in found] == [(20, 20, 60, 40, "OK"), (100, 50, 199, 99, "No")]
    script.answer = "(0.5, 0.5)"
    with pytest.raises(GroundingError) as caught:
        model.detect(PICTURE, "buttons")
    assert caught.value.code == "grounding.no_box"


def test_places_in_the_reasoning_do_not_count(script):
    script.metadata = {"general.name": "Kimi VL Fake Thinking"}
    script.answer = "◁think▷maybe (0.9, 0.9)◁/think▷click(x=0.5, y=0.25)"
    with KimiVL("fake-Thinking.gguf", n_ctx=4096) as model:
        assert model.point(PICTURE, "x").share == (0.5, 0.25)
        script.answer = "◁think▷maybe (0.9, 0.9) or not"
        with pytest.raises(GroundingError) as caught:
            model.point(PICTURE, "x", max_new_tokens=20)
        assert caught.value.code == "grounding.unfinished"


@pytest.mark.parametrize(("name", "value"), [("mapping", "both"), ("units", "inches"), ("n", 0)])
def test_wrong_arguments(model, name, value):
    with pytest.raises(BadRequest) as caught:
        model.point(PICTURE, "x", **{name: value})
    assert caught.value.code == f"request.{name}"


# The command


@pytest.fixture
def shot(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "shot.png")
    return str(tmp_path / "shot.png")


def test_the_command_prints_pixels_and_marks_them(script, shot, tmp_path, capsys):
    script.answer = "click(x=0.5, y=0.25) click(x=0.1, y=0.2)"
    (tmp_path / "m-Instruct.gguf").touch()
    line = ["point", "-m", str(tmp_path / "m-Instruct.gguf"), "-c", "4096", "-i", shot, "the box"]
    assert cli.main([*line, "--overlay", str(tmp_path / "o.png")]) == 0
    assert capsys.readouterr().out == "100 25\n"
    with Image.open(tmp_path / "o.png") as marked:
        assert marked.size == (200, 100)
    assert cli.main([*line, "--all", "--json"]) == 0
    assert [(p["x"], p["y"]) for p in json.loads(capsys.readouterr().out)] == [(100, 25), (20, 20)]
    assert cli.main([*line, "--overlay", str(tmp_path / "o.png")]) == 2
    assert cli.main([*line, "--overlay", shot, "--force"]) == 2
    script.answer = "somewhere"
    assert cli.main(line) == 1
    assert "grounding.no_point" in capsys.readouterr().err
