"""The page on the real server, with the built-in model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs the extra [test-server]")

from playwright.sync_api import expect
from server_support import RunningServer

from kimi_vl_cpp.model import KimiVL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page, Route


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    with RunningServer(lambda: KimiVL.builtin(n_ctx=2048), keys=("page:secret",)) as server:
        yield server


@pytest.fixture
def page(open_page: Callable[..., Page], running: RunningServer) -> Page:
    page = open_page(base=running.url)
    page.get_by_role("textbox", name="Key").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator(".model")).not_to_be_empty()
    return page


def finished(turn: Locator) -> Locator:
    expect(turn.locator("[data-action=regenerate]")).to_be_visible()
    expect(turn.get_by_role("alert")).to_have_count(0)
    return turn


def test_the_receipt_is_read(page: Page) -> None:
    page.click(".example")
    turn = finished(page.locator(".answer"))
    expect(turn.locator(".said")).to_have_text("$10.05")
    expect(turn.locator(".figures")).to_contain_text("tokens/s")
    expect(turn.locator(".trouble")).to_be_empty()  # nothing of the request was without effect
    turn.locator(".figures").click()
    assert turn.locator("dt").all_inner_texts()[-2:] == ["Of these for pictures", "Seed"]
    expect(page.locator(".context")).to_be_visible()


def test_a_picture_of_the_tray_says_what_it_costs(page: Page) -> None:
    page.set_input_files("input[type=file][multiple]", "kimi_vl_cpp/builtin/receipt.png")
    expect(page.locator(".tray .cost")).to_have_text("56 tokens")


def test_a_follow_up_sees_the_picture_and_a_new_version_too(page: Page) -> None:
    page.click(".example")
    finished(page.locator(".answer"))
    page.fill("#prompt", "What is the total?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(2)
    expect(finished(page.locator(".answer").last).locator(".said")).to_have_text("$10.05")
    page.locator("[data-action=regenerate]").last.click()
    expect(page.locator(".versions")).to_have_text("2 / 2")
    expect(finished(page.locator(".answer").last).locator(".said")).to_have_text("$10.05")


def test_stopping_frees_the_server(page: Page, running: RunningServer) -> None:
    def without_end(route: Route) -> None:
        body = {**route.request.post_data_json, "ignore_eos": True, "max_tokens": 1900}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", without_end)
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").click()
    expect(finished(page.locator(".answer")).locator(".trouble")).to_have_text("Stopped.")
    with running.client(headers={"Authorization": "Bearer secret"}) as client:
        for _ in range(1000):
            streams = client.get("/v1/status").json()["streams"]
            if not streams:
                break
            page.wait_for_timeout(20)
    assert streams == []


def test_a_refusal_of_the_server_is_shown_with_its_sentence(page: Page) -> None:
    page.set_input_files(
        "input[type=file][multiple]",
        {"name": "cut.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n" + b"x" * 99},
    )
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer").get_by_role("alert")).to_contain_text("messages[0].content[0]")
