"""Pictures on the page: added in every way, sent in their order, and places drawn on them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright", reason="needs the extra [test-server]")

from page_support import eventually
from PIL import Image
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page
    from scripted_chat import Scripted

FILES = "input[type=file][multiple]"


def png(width: int, height: int, colour: str = "red", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, kind)
    return out.getvalue()


def upload(name: str, data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": mime, "buffer": data}


def tray(page: Page) -> Locator:
    return page.get_by_role("list", name="Pictures of your question").get_by_role("listitem")


def send(page: Page, text: str) -> Locator:
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer")).to_have_count(before + 1)
    turn = page.locator(".answer").last
    expect(turn.locator("[data-action=regenerate]")).to_be_visible()
    return turn


def sizes_sent(body: dict[str, Any]) -> list[tuple[int, int]]:
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls]


def test_pictures_are_sent_in_the_order_of_the_tray(page: Page, scripted: Scripted) -> None:
    page.set_input_files(
        FILES, [upload("a.png", png(30, 20)), upload("b.png", png(40, 20)), upload("c.png", png(50, 20))]
    )
    expect(tray(page)).to_have_count(3)
    expect(tray(page).first).to_contain_text("30 × 20")
    expect(tray(page).first).to_contain_text("56 tokens")
    page.get_by_role("button", name="Move c.png earlier").click()
    page.get_by_role("button", name="Remove a.png").click()
    expect(page.locator("#prompt")).to_be_focused()
    send(page, "which?")
    assert sizes_sent(scripted.requests[0]) == [(50, 20), (40, 20)]
    expect(tray(page)).to_have_count(0)
    expect(page.locator(".user .thumb")).to_have_count(2)


def test_pictures_stay_in_the_conversation(page: Page, scripted: Scripted) -> None:
    page.set_input_files(FILES, [upload("a.png", png(30, 20))])
    send(page, "one")
    send(page, "two")
    content = scripted.requests[1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert scripted.requests[1]["messages"][-1]["content"] == "two"


TRANSFER = """([bytes, name, kind]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  if (kind === "paste")
    document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
  else for (const step of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: transfer }));
}"""


@pytest.mark.parametrize(
    ("kind", "name", "shown"), [("paste", "image.png", "pasted picture"), ("drop", "d.png", "d.png")]
)
def test_pictures_are_pasted_and_dropped(page: Page, scripted: Scripted, kind: str, name: str, shown: str) -> None:
    page.evaluate(TRANSFER, [base64.b64encode(png(33, 22)).decode(), name, kind])
    expect(tray(page)).to_contain_text([shown])
    expect(page.locator(".drop")).to_have_count(0)
    send(page, "what?")
    assert sizes_sent(scripted.requests[0]) == [(33, 22)]


def test_pasted_text_is_text(page: Page) -> None:
    page.locator("#prompt").focus()
    page.evaluate("navigator.clipboard.writeText('hello')")
    page.keyboard.press("Control+V")
    expect(page.locator("#prompt")).to_have_value("hello")


def test_the_camera_is_used_on_click_only(page: Page, scripted: Scripted) -> None:
    page.evaluate(
        """() => {
          const old = MediaDevices.prototype.getUserMedia;
          navigator.mediaDevices.getUserMedia = (...given) => {
            window.asked = 1;
            return old.apply(navigator.mediaDevices, given);
          };
        }"""
    )
    assert page.evaluate("window.asked") is None
    page.get_by_role("button", name="Take a picture").click()
    page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0")
    page.get_by_role("button", name="Take the picture").click()
    expect(tray(page)).to_contain_text(["camera picture"])
    send(page, "what?")
    assert len(sizes_sent(scripted.requests[0])) == 1


def test_without_a_camera_the_dialog_says_what_to_do(open_page: Callable[..., Page]) -> None:
    refuse = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))"
    page = open_page(script=refuse)
    page.get_by_role("button", name="Take a picture").click()
    expect(page.get_by_role("dialog")).to_contain_text("Allow it in the address bar and try again.")


def test_what_is_no_picture_is_refused_by_name(page: Page) -> None:
    page.set_input_files(FILES, [upload("notes.txt", b"hello", "text/plain"), upload("ok.png", png(9, 9))])
    expect(page.get_by_role("status").filter(has_text="notes.txt is not a picture. Add a PNG")).to_be_visible()
    expect(tray(page)).to_have_count(1)


def test_a_format_that_the_browser_cannot_show_is_sent_as_it_is(page: Page, scripted: Scripted) -> None:
    data = png(31, 21, kind="TIFF")
    page.set_input_files(FILES, [upload("scan.tiff", data, "image/tiff")])
    expect(tray(page)).to_contain_text(["scan.tiff"])
    send(page, "what?")
    assert sizes_sent(scripted.requests[0]) == [(31, 21)]


def test_a_file_above_the_limit_is_scaled_and_says_so(page: Page, scripted: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(png(4000, 1000) + bytes(17 << 20))  # what follows a PNG's end is ignored
    page.set_input_files(FILES, file)
    expect(tray(page)).to_contain_text(["scaled to 3584 × 896"])
    send(page, "what?")
    assert sizes_sent(scripted.requests[0]) == [(3584, 896)]


def test_editing_a_question_can_remove_a_picture(page: Page, scripted: Scripted) -> None:
    page.set_input_files(FILES, [upload("a.png", png(30, 20)), upload("b.png", png(40, 20))])
    send(page, "which?")
    page.locator("[data-action=edit]").click()
    page.get_by_role("button", name="Remove a.png").click()
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".versions")).to_have_text("2 / 2")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    assert sizes_sent(scripted.requests[1]) == [(40, 20)]


SLOW_PICTURES = """
  const read = window.createImageBitmap;
  window.openGate = null;
  const gate = new Promise((open) => (window.openGate = open));
  window.createImageBitmap = async (...given) => (await gate, read(...given));
"""


def test_a_question_waits_for_the_pictures_that_were_added_before_it(open_page: Any, scripted: Scripted) -> None:
    page = open_page(script=SLOW_PICTURES)
    page.set_input_files(FILES, [upload("a.png", png(30, 20))])
    page.set_input_files(FILES, [upload("b.png", png(40, 20))])
    expect(tray(page)).to_have_text(["Reading a.png …", "Reading b.png …"])
    page.fill("#prompt", "which?")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_value("which?")
    page.evaluate("openGate()")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    assert sizes_sent(scripted.requests[0]) == [(30, 20), (40, 20)]
    assert len(scripted.requests) == 1
    expect(tray(page)).to_have_count(0)


def test_a_question_is_not_sent_without_a_picture_that_cannot_be_read(open_page: Any, scripted: Scripted) -> None:
    page = open_page(script=SLOW_PICTURES)
    page.set_input_files(FILES, [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}])
    page.set_input_files(FILES, [upload("b.png", png(40, 20))])
    page.fill("#prompt", "which?")
    page.keyboard.press("Enter")
    page.evaluate("openGate()")
    expect(page.get_by_role("status").filter(has_text="notes.txt")).to_be_visible()
    expect(tray(page)).to_contain_text(["b.png"])
    expect(page.locator("#prompt")).to_have_value("which?")
    assert scripted.requests == []


def points(page: Page) -> list[tuple[float, float]]:
    """The centres of the rings, in pixels of the picture."""
    found = []
    for path in page.locator(".marks .mark").all():
        x, y, r = map(float, re.match(r"M(\S+) (\S+?)a(\S+) ", path.get_attribute("d") or "").groups())  # type: ignore[union-attr]
        found.append((x + r, y))
    return found


def test_a_point_is_drawn_where_its_shares_are(page: Page) -> None:
    page.set_input_files(FILES, [upload("shot.png", png(400, 200))])
    send(page, "where is it?")
    eventually(page, lambda: points(page), [(300, 100)])
    boxes = """() => [".marks .layer", ".marks img"].map((each) => document.querySelector(each).getBoundingClientRect())
      .map((box) => [box.x, box.y, box.width, box.height])"""
    eventually(page, lambda: page.evaluate(f"({boxes})().map(String).every((box, i, all) => box === all[0])"), True)


@pytest.mark.parametrize("size", [(40, 20), (400, 200), (100, 900)])
def test_labels_lie_inside_the_picture_on_a_ground_of_their_own(page: Page, size: tuple[int, int]) -> None:
    page.set_input_files(FILES, [upload("shot.png", png(*size))])
    send(page, "boxes")
    labels = page.locator(".marks .layer text")
    expect(labels).to_have_text(["total", "shop"])
    for ground, label in zip(page.locator(".marks .layer rect").all(), labels.all(), strict=True):
        x, y, width, height = (float(ground.get_attribute(name) or "") for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= -0.01
        assert x + width <= max(size[0], width) + 0.01  # a small picture is narrower than its labels
        inner = label.evaluate("(text) => { const box = text.getBBox(); return [box.x, box.x + box.width]; }")
        assert x < inner[0] and inner[1] < x + width + 0.01
        assert height > 0


def test_pixels_are_read_as_pixels_and_can_be_read_otherwise(page: Page) -> None:
    page.set_input_files(FILES, [upload("shot.png", png(640, 480))])
    send(page, "pixels")
    reading = page.get_by_label("Numbers read as")
    expect(reading).to_have_value("pixels")
    eventually(page, lambda: points(page), [(320, 240)])
    reading.select_option("thousandths")
    eventually(page, lambda: points(page), [pytest.approx((204.8, 115.2))])
    reading.select_option("shares")
    expect(page.locator(".marks")).to_contain_text("1 place lies outside the picture when read so.")
    eventually(page, lambda: points(page), [])


def test_boxes_have_their_labels_and_the_picture_can_be_chosen(page: Page) -> None:
    page.set_input_files(FILES, [upload("a.png", png(100, 100)), upload("b.png", png(200, 100))])
    send(page, "boxes")
    drawn = "els => els.map(e => e.getAttribute('d'))"
    eventually(
        page, lambda: page.locator(".marks .mark").evaluate_all(drawn), ["M20 20H100V60H20Z", "M120 70H180V95H120Z"]
    )
    expect(page.locator(".marks text")).to_have_text(["total", "shop"])
    page.get_by_role("combobox", name="Drawn on").select_option(label="a.png")
    eventually(page, lambda: page.locator(".marks .mark").evaluate_all(drawn), ["M10 20H50V60H10Z", "M60 70H90V95H60Z"])
    page.get_by_role("button", name="Places named in the answer").click()
    expect(page.get_by_role("dialog").locator(".mark")).to_have_count(2)


def test_places_of_a_thought_or_without_a_picture_are_not_drawn(page: Page) -> None:
    send(page, "where is it?")
    expect(page.locator(".marks")).to_have_count(0)


PLACES = [
    ("click(x=0.884, y=0.144)", [[0.884, 0.144]]),
    ("pyautogui.click(x=0.204, y=0.149)", [[0.204, 0.149]]),
    ("pyautogui.click(120, 300)", [[120, 300]]),
    ("x = .5, y = 1", [[0.5, 1]]),
    ('{"x": 0.5, "y": 0.25}', [[0.5, 0.25]]),
    ("It is at (0.25, 0.75).", [[0.25, 0.75]]),
    ("在 (0.25, 0.75)", [[0.25, 0.75]]),
    ('{"bbox_2d": [0.28, 0.5, 0.52, 0.7]}', [[0.28, 0.5, 0.52, 0.7]]),
    ('{"bbox_2d": [280, 500, 520, 700], "label": "ok"}', [[280, 500, 520, 700]]),
    ("[0.1, 0.2, 0.3, 0.4]", [[0.1, 0.2, 0.3, 0.4]]),
    ("x=0.1, y=0.2 then x=0.3, y=0.4", [[0.1, 0.2], [0.3, 0.4]]),
    ("f(1, 2), [10, 20, 30], $10.05, (2019, 2020)", []),
    ("x=-0.5, y=0.2", []),
    ("screen_width * 0.5, screen_height * 0.3", []),
    ("x=, y=", []),
    ("(" * 400 + "0.5" + ")" * 400, []),
    ("x=" * 5000, []),
    ("[" * 5000 + "0.1, " * 5000, []),
]


def test_the_forms_in_which_places_are_named(page: Page) -> None:
    read = """async (texts) => {
      const { placesIn } = await import("/ui/grounding.js");
      return texts.map((text) => placesIn(text).map((place) => place.numbers));
    }"""
    found = page.evaluate(read, [text for text, _ in PLACES])
    assert dict(zip([text for text, _ in PLACES], found, strict=True)) == dict(PLACES)


def test_the_example_picture_is_the_one_that_ships(page: Page, url: str) -> None:
    shipped = Path(__file__).parents[3] / "kimi_vl_cpp" / "builtin" / "receipt.png"
    assert page.request.get(f"{url}/ui/example.png").body() == shipped.read_bytes()
