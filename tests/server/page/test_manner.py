"""How the page behaves: sizes, themes, the keyboard alone, assistive technology, motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs the extra [test-server]")

from page_support import eventually
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.routing import Mount

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Page
    from scripted_chat import Scripted


def ask(page: Page, text: str, keyboard: bool = True) -> None:
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    if keyboard:
        page.keyboard.press("Enter")
    else:
        page.click(".send")
    expect(page.locator(".answer")).to_have_count(before + 1)
    expect(page.locator(".answer").last.locator("[data-action=regenerate]")).to_be_visible()


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_window(open_page: Callable[..., Page], width: int) -> None:
    page = open_page(width, 640)
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    for text in ("markdown", "boxes", "w" * 300):
        ask(page, text)
    wide = """() => [...document.querySelectorAll("main *")]
      .filter((e) => !e.closest("pre, .table, .tray, .unseen, math, svg"))
      .filter((e) => {
        const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1);
      })
      .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_phone_the_conversations_are_a_drawer(open_page: Callable[..., Page]) -> None:
    page = open_page(360, 740, has_touch=True, is_mobile=True)
    expect(page.locator("#search")).to_be_hidden()
    ask(page, "apples", keyboard=False)
    page.get_by_role("button", name="Show conversations").click()
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_be_hidden()
    expect(page.get_by_role("button", name="Show conversations")).to_be_focused()


def test_on_a_phone_enter_makes_a_new_line(open_page: Callable[..., Page], scripted: Scripted) -> None:
    page = open_page(360, 740, has_touch=True, is_mobile=True)
    page.locator("#prompt").focus()
    page.keyboard.type("a")
    page.keyboard.press("Enter")
    page.keyboard.type("b")
    expect(page.locator("#prompt")).to_have_value("a\nb")
    assert scripted.requests == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_or_chosen(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 24)"}
    other = {"light": "dark", "dark": "light"}[scheme]
    eventually(page, lambda: page.evaluate(ground), grounds[scheme])
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Theme").select_option(other)
    eventually(page, lambda: page.evaluate(ground), grounds[other])
    page.reload()
    eventually(page, lambda: page.evaluate(ground), grounds[other])


def test_everything_is_done_with_the_keyboard_alone(page: Page, scripted: Scripted) -> None:
    press = page.keyboard.press
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("one")
    press("Shift+Enter")
    page.keyboard.type("two")
    press("Enter")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    assert scripted.requests[0]["messages"][0]["content"] == "one\ntwo"
    press("Escape")
    press("r")
    expect(page.locator(".versions")).to_have_text("2 / 2")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    press("Escape")
    press("[")
    expect(page.locator(".versions")).to_have_text("1 / 2")
    press("e")
    page.keyboard.type(" three")
    press("Enter")
    expect(page.locator(".user .versions")).to_have_text("2 / 2")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    press("Escape")
    press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    press("Escape")
    press("s")
    expect(page.locator("#search")).to_be_focused()
    press("Tab")
    press("Tab")
    expect(page.get_by_role("button", name="More for “one two”")).to_be_focused()
    press("Enter")
    press("ArrowDown")
    expect(page.get_by_role("menuitem", name="Export as JSON")).to_be_focused()
    press("Escape")
    expect(page.get_by_role("button", name="More for “one two”")).to_be_focused()
    press("n")
    expect(page.locator(".welcome")).to_be_visible()


def test_single_keys_can_be_turned_off(page: Page) -> None:
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_focus_order_starts_at_the_question(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


def test_a_screen_reader_hears_the_answer_once(open_page: Callable[..., Page], scripted: Scripted) -> None:
    page = open_page()
    page.evaluate(
        """() => {
          window.heard = [];
          new MutationObserver((changes) => {
            const live = "[aria-live], [role=status], [role=alert], [role=log]";
            for (const change of changes) {
              const region = change.target.parentElement?.closest(live) || change.target.closest?.(live);
              if (region?.textContent) window.heard.push(region.textContent);
            }
          }).observe(document.body, { childList: true, characterData: true, subtree: true });
        }"""
    )
    scripted.delay = 0.002
    ask(page, "markdown")
    page.wait_for_function("() => window.heard.some((text) => text.startsWith('Answer: '))")
    heard = page.evaluate("window.heard")
    assert [text[:10] for text in heard] == ["Answering.", "Answer: ##"]


def test_controls_have_names_and_turns_have_headings(page: Page) -> None:
    page.click(".example")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    ask(page, "boxes")
    unnamed = """() => [...document.querySelectorAll("button, input, textarea, select, a")]
      .filter((e) => e.checkVisibility() && !e.ariaHidden)
      .filter((e) => !(e.getAttribute("aria-label") || e.innerText?.trim() || e.labels?.length))
      .map((e) => e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    expect(page.locator(".turn > h2")).to_have_text(["You", "Answer"] * 2)


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_axe_finds_nothing(open_page: Callable[..., Page], scripted: Scripted, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra [test-server]")
    page = open_page(width, 800, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")

    def check(state: str) -> None:
        results = axe.Axe().run(page)
        found = [(v["id"], v["nodes"][0]["html"][:120]) for v in results.response["violations"]]
        assert found == [], state

    check("welcome")
    page.set_input_files("input[type=file][multiple]", "examples/receipt.png")
    ask(page, "markdown")
    scripted.gate("thought").set()
    ask(page, "think")
    page.locator("summary:visible").click()
    ask(page, "boxes")
    ask(page, "refuse")
    page.locator(".figures").last.click()
    check("conversation")
    page.get_by_role("main").get_by_role("button", name="Settings").click()
    check("settings")


def test_the_focus_stays_where_it_is_when_the_conversations_are_drawn_anew(page: Page) -> None:
    """As they are when another tab saved one."""
    ask(page, "apples")
    expect(page.locator("[data-action=regenerate]")).to_be_visible()
    more = page.get_by_role("button", name="More for “apples”")

    def draw_anew() -> None:
        page.evaluate(
            "document.querySelectorAll('#sidebar li').forEach((row) => { row.dataset.old = 1; });"
            "new BroadcastChannel('kimi-vl').postMessage('another tab')"
        )
        expect(page.locator("#sidebar li[data-old]")).to_have_count(0)
        expect(more).to_be_visible()

    more.focus()
    draw_anew()
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    draw_anew()
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("Escape")
    expect(more).to_be_focused()


def test_motion_is_reduced_on_request(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    page.fill("#prompt", "queue")
    page.keyboard.press("Enter")
    page.locator("progress").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0


def test_it_works_below_a_prefix(browser: Browser, scripted: Scripted) -> None:
    from scripted_chat import served

    with served(Starlette(routes=[Mount("/deep/er", scripted.app())])) as url:
        page = browser.new_page()
        page.goto(f"{url}/deep/er/")
        page.click(".example")
        expect(page.locator(".answer .said")).to_have_text("You said: What is the total?")
        page.close()
