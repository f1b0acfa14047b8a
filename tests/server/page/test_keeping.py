"""Conversations in the browser: kept, found, renamed, deleted, exported, imported."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright", reason="needs the extra [test-server]")

from page_support import eventually
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page
    from scripted_chat import Scripted


def ask(page: Page, text: str) -> None:
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(before + 1)
    expect(page.locator(".answer").last.locator("[data-action=regenerate]")).to_be_visible()


def expect_titles(page: Page, titles: list[str]) -> None:
    expect(page.locator("aside li .title")).to_have_text(titles)


def fresh(page: Page) -> None:
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.locator(".welcome")).to_be_visible()


def more(page: Page, title: str, entry: str) -> None:
    page.get_by_role("button", name=f"More for “{title}”").click()
    page.get_by_role("menuitem", name=entry).click()


def test_a_conversation_survives_a_reload_with_its_pictures(page: Page) -> None:
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    page.reload()
    expect(page.locator(".answer .said")).to_have_text("You said: What is the total?")
    page.wait_for_function("() => document.querySelector('.user .thumb img')?.naturalWidth === 224")
    expect(page.locator(".figures")).to_contain_text("38 tokens/s")
    expect(page).to_have_title("What is the total? – Kimi-VL")


def test_an_answer_that_a_reload_ended_can_go_on(page: Page, scripted: Scripted) -> None:
    page.fill("#prompt", "hold it")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .said")).to_contain_text("You said")
    page.reload()
    expect(page.locator(".answer .trouble")).to_have_text("Stopped.")


def test_conversations_are_found_by_what_they_say(page: Page) -> None:
    ask(page, "apples")
    fresh(page)
    ask(page, "pears")
    expect_titles(page, ["pears", "apples"])
    page.fill("#search", "SAID: APP")
    expect(page.locator("aside li")).to_have_count(1)
    expect_titles(page, ["apples"])
    page.fill("#search", "plums")
    expect(page.locator("aside nav")).to_contain_text("Nothing matches.")
    page.fill("#search", "")
    page.get_by_role("button", name="apples", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("apples")
    page.go_back()
    expect(page.locator(".bubble")).to_have_text("pears")


def test_renaming(page: Page) -> None:
    ask(page, "apples")
    more(page, "apples", "Rename")
    page.get_by_label("Title of the conversation").fill("Fruit <b>")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Fruit <b>")
    ask(page, "and pears")
    expect_titles(page, ["Fruit <b>"])
    page.reload()
    expect(page.locator("h1")).to_have_text("Fruit <b>")


def test_deleting_can_be_undone(page: Page) -> None:
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    more(page, "What is the total?", "Delete")
    expect(page.locator(".welcome")).to_be_visible()
    expect_titles(page, [])
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".answer .said")).to_have_text("You said: What is the total?")
    page.reload()
    page.wait_for_function("() => document.querySelector('.user .thumb img')?.naturalWidth === 224")
    more(page, "What is the total?", "Delete")
    expect(page.locator(".welcome")).to_be_visible()
    page.reload()
    expect(page.locator("aside nav")).to_contain_text("kept here, in this browser only")
    count = """() => new Promise((done) => (indexedDB.open("kimi-vl").onsuccess = (e) =>
      (e.target.result.transaction("pictures").objectStore("pictures").count().onsuccess =
        (c) => done(c.target.result))))"""
    eventually(page, lambda: page.evaluate(count), 0)


def test_export_and_import_bring_everything_back(page: Page, open_page: Callable[..., Page], tmp_path: Path) -> None:
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    page.locator("[data-action=regenerate]").click()
    expect(page.locator(".versions")).to_have_text("2 / 2")
    fresh(page)
    ask(page, "markdown")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "all.json"
    download.value.save_as(file)
    content = json.loads(file.read_text())
    assert (content["format"], content["version"], len(content["conversations"])) == ("kimi-vl-conversations", 1, 2)

    other = open_page()
    with other.expect_file_chooser() as chooser:
        other.get_by_role("button", name="Import").click()
    chooser.value.set_files(file)
    expect(other.get_by_role("status").filter(has_text="Imported 2 conversations.")).to_be_visible()
    other.get_by_role("button", name="What is the total?", exact=True).click()
    expect(other.locator(".versions")).to_have_text("2 / 2")
    other.wait_for_function("() => document.querySelector('.user .thumb img')?.naturalWidth === 224")
    other.get_by_role("button", name="markdown", exact=True).click()
    expect(other.locator(".answer td").first).to_have_text("Tea")
    with other.expect_download() as download:
        other.get_by_role("button", name="Export all").click()
    again = json.loads(Path(download.value.path()).read_text())

    def told(exported: dict[str, Any]) -> list[str]:
        """Everything but the ids of conversations and pictures."""
        conversations = []
        for conversation in exported["conversations"]:
            nodes = [
                [node["text"], node["role"], node.get("stats"), [picture["name"] for picture in node["pictures"]]]
                for node in conversation["nodes"].values()
            ]
            conversations.append(json.dumps([nodes, [picture["data"] for picture in conversation["pictures"]]]))
        return sorted(conversations)

    assert told(again) == told(content)


def test_export_as_markdown(page: Page) -> None:
    ask(page, "apples")
    page.get_by_role("button", name="More for “apples”").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").click()
    assert download.value.suggested_filename == "apples.md"
    assert Path(download.value.path()).read_text() == "# apples\n\n## You\n\napples\n\n## Answer\n\nYou said: apples\n"


BAD = {
    "text.json": (b"hello", "text.json is not JSON."),
    "other.json": (b'{"a": 1}', "other.json holds no conversations of this page."),
    "null.json": (b"null", "null.json holds no conversations of this page."),
    "shape.json": (
        b'{"format": "kimi-vl-conversations", "conversations": [{"nodes": {"a": {"role": "admin"}}, "pictures": []}]}',
        "shape.json holds no conversations of this page.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_importing_something_else_is_refused(page: Page, name: str) -> None:
    data, message = BAD[name]
    page.set_input_files("input[accept*=json]", {"name": name, "mimeType": "application/json", "buffer": data})
    expect(page.get_by_role("status").filter(has_text=message)).to_be_visible()
    expect_titles(page, [])


def test_nothing_of_an_imported_file_acts(page: Page) -> None:
    evil = '<img src=x onerror="window.hacked=1">'
    node = {
        "id": "n",
        "parent": None,
        "order": 0,
        "role": "user",
        "text": evil,
        "pictures": [{"id": "p", "name": evil, "width": 1}],
    }
    reply = {
        "id": "m",
        "parent": "n",
        "order": 1,
        "role": "assistant",
        "text": evil,
        "pictures": [],
        "stats": {"rate": evil},
    }
    picture = {"id": "p", "data": "data:text/html;base64," + base64.b64encode(evil.encode()).decode()}
    conversation = {"id": "c", "title": evil, "nodes": {"n": node, "m": reply}, "chosen": {}, "pictures": [picture]}
    data = json.dumps({"format": "kimi-vl-conversations", "version": 1, "conversations": [conversation]}).encode()
    page.set_input_files("input[accept*=json]", {"name": "evil.json", "mimeType": "application/json", "buffer": data})
    page.locator("aside li .title").click()
    expect(page.locator(".answer .said")).to_have_text(evil)
    assert page.evaluate("window.hacked") is None


def test_a_browser_that_keeps_nothing_is_told(open_page: Callable[..., Page]) -> None:
    page = open_page(script="indexedDB.open = () => { throw new DOMException('', 'SecurityError'); };")
    expect(page.get_by_role("status").filter(has_text="This browser keeps nothing")).to_be_visible()
    ask(page, "apples")
    fresh(page)
    page.get_by_role("button", name="apples", exact=True).click()
    expect(page.locator(".answer .said")).to_have_text("You said: apples")


def test_a_full_storage_loses_nothing_while_the_page_is_open(open_page: Callable[..., Page]) -> None:
    page = open_page(
        script="IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError'); };"
    )
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The browser's storage is full")).to_be_visible()
    fresh(page)
    page.get_by_role("button", name="What is the total?", exact=True).click()
    expect(page.locator(".answer .said")).to_have_text("You said: What is the total?")


def test_another_tab_sees_a_new_conversation(page: Page, url: str) -> None:
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator("aside nav")).to_contain_text("kept here, in this browser only")
    ask(page, "apples")
    expect(other.locator("aside li .title")).to_have_text("apples")
