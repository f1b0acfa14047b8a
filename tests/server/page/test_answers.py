"""Asking and answering on the page: streams, thoughts, branches, errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="needs the extra [test-server]")

from page_support import at_rest, eventually
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page
    from scripted_chat import Scripted


def ask(page: Page, text: str) -> Locator:
    """Sends a question; the turn of its answer."""
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(before + 1)
    return page.locator(".answer").last


def finished(turn: Locator) -> Locator:
    expect(turn.locator("[data-action=regenerate]")).to_be_visible()
    return turn


def test_the_example_answers_in_one_click(page: Page, scripted: Scripted) -> None:
    page.click(".example")
    turn = finished(page.locator(".answer"))
    expect(turn.locator(".said")).to_have_text("You said: What is the total?")
    body = scripted.requests[0]
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and body["return_progress"]
    assert body["model"] == "Kimi-VL-A3B-Thinking-2506"
    assert set(body) == {"model", "messages", "stream", "stream_options", "return_progress"}


def test_markdown_is_drawn_and_nothing_in_it_acts(page: Page) -> None:
    turn = finished(ask(page, "markdown"))
    expect(turn.locator("h2", has_text="What the receipt says")).to_be_visible()
    expect(turn.locator("td")).to_have_text(["Tea", "$3.25", "Bread and butter", "$6.80"])
    expect(turn.locator("math")).to_have_count(3)
    expect(turn.locator("a").first).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(turn.locator("img, script")).to_have_count(0)
    assert page.evaluate("window.hacked") is None


def test_code_is_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    turn = finished(ask(page, "where"))
    turn.get_by_role("button", name="Copy code").click()
    expect(turn.locator(".code .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "pyautogui.click(x=0.75, y=0.5)\n"
    turn.locator("[data-action=copy]").click()
    eventually(page, lambda: "lower right" in page.evaluate("navigator.clipboard.readText()"), True)


def test_finished_blocks_are_never_drawn_again(page: Page, scripted: Scripted) -> None:
    scripted.delay = 0.01
    turn = ask(page, "markdown")
    turn.locator("table").wait_for()
    page.evaluate(
        "document.querySelector('.answer .block').mark = document.querySelector('.answer .block h2').mark = 1"
    )
    finished(turn)
    kept = "[document.querySelector('.answer .block').mark, document.querySelector('.answer .block h2').mark]"
    assert page.evaluate(kept) == [1, 1]


def test_nothing_that_is_read_moves_while_an_answer_streams(page: Page, scripted: Scripted) -> None:
    scripted.delay = 0.005
    turn = ask(page, "markdown")
    turn.locator("h2 >> nth=1").wait_for()
    page.evaluate(
        """() => {
          window.tops = new Set();
          const log = document.querySelector(".log");
          const look = () => {
            for (const e of document.querySelectorAll(".answer .block:first-child, .bubble"))
              window.tops.add(`${e.className} ${Math.round(e.getBoundingClientRect().top + log.scrollTop)}`);
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    finished(turn)
    assert sorted(name.split(" ")[0] for name in page.evaluate("[...window.tops]")) == ["block", "bubble"]


def test_a_thought_is_folded_with_its_time_and_can_be_ended(page: Page, scripted: Scripted) -> None:
    turn = ask(page, "think")
    expect(turn.locator("summary")).to_have_text(re.compile(r"^Thinking · [\d.]+ s$"))  # of one in ms it is not kept
    expect(turn.locator(".thought-text")).to_be_hidden()
    turn.get_by_role("button", name="Answer now").click()
    finished(turn)
    assert scripted.controls == [{"id": "chatcmpl-1", "action": "reasoning_end"}]
    expect(turn.locator("summary")).to_have_text(re.compile(r"^Thought for \d+(\.\d)? s$"))
    expect(turn.locator(".said")).to_have_text("$10.05")
    turn.locator("summary").click()
    expect(turn.locator(".thought-text")).to_contain_text("The receipt lists two items.")


def test_thoughts_do_not_go_back_to_the_model(page: Page, scripted: Scripted) -> None:
    scripted.gate("thought").set()
    finished(ask(page, "think"))
    finished(ask(page, "and then?"))
    assert scripted.requests[1]["messages"][1] == {"role": "assistant", "content": "$10.05"}


def test_progress_names_queue_picture_and_prompt(page: Page, scripted: Scripted) -> None:
    scripted.queue_ahead = 2
    turn = ask(page, "queue")
    expect(turn.locator(".progress")).to_contain_text("In the queue, 2 before you")
    scripted.gate("queue").set()
    expect(turn.locator(".progress")).to_contain_text("Looking at the picture25 %")
    expect(turn.locator("progress")).to_have_attribute("value", "0.25")
    scripted.gate("encode").set()
    expect(turn.locator(".progress")).to_contain_text("Reading1,024 of 2,048")
    scripted.gate("prefill").set()
    expect(finished(turn).locator(".progress")).to_be_hidden()


def test_stop_ends_the_computation_and_continue_goes_on(page: Page, scripted: Scripted) -> None:
    turn = ask(page, "hold this answer")
    text = "You said: hold thi"
    expect(turn.locator(".said")).to_have_text(text)
    page.get_by_role("button", name="Stop").click()
    finished(turn)
    expect(turn.locator(".trouble")).to_have_text("Stopped.")
    eventually(page, lambda: scripted.cancelled, 1)
    turn.get_by_role("button", name="Continue").click()
    expect(turn.locator(".said")).to_have_text(f"{text} and so it goes on.")
    body = scripted.requests[1]
    assert body["continue_final_message"] is True
    assert body["messages"][-1]["role"] == "assistant" and body["messages"][-1]["content"] == text
    expect(page.locator(".answer")).to_have_count(1)


def test_a_thought_that_was_stopped_goes_on_as_a_thought(page: Page, scripted: Scripted) -> None:
    turn = ask(page, "think")
    expect(turn.locator("summary")).to_contain_text("Thinking")
    turn.locator("summary").click()  # a folded thought is not drawn
    expect(turn.locator(".thought-text")).to_contain_text("so that is the total.")
    page.keyboard.press("Escape")
    finished(turn).get_by_role("button", name="Continue").click()
    expect(turn.locator(".said")).to_have_text("and so it goes on.")
    (content,) = [m["content"] for m in scripted.requests[1]["messages"] if m["role"] == "assistant"]
    assert content.startswith("◁think▷The receipt lists") and "◁/think▷" not in content


def test_an_answer_cut_by_its_limit_says_so(page: Page) -> None:
    turn = finished(ask(page, "short"))
    expect(turn.locator(".trouble")).to_have_text("The answer reached its length limit.")
    expect(turn.get_by_role("button", name="Continue")).to_be_visible()


def test_figures_are_short_until_asked_for(page: Page) -> None:
    turn = finished(ask(page, "hello"))
    figures = turn.locator(".figures")
    expect(figures).to_have_text("38 tokens/s · first after 0.4 s · 64 of 84 cached")
    figures.click()
    expect(turn.locator("dt")).to_have_text(
        ["Speed", "First token", "Answer", "Prompt", "Of these from the cache", "Of these for pictures", "Seed"]
    )
    assert turn.locator("dd").all_inner_texts()[2:] == ["21 tokens", "84 tokens", "64 tokens", "56 tokens", "7"]
    expect(page.locator(".context")).to_have_attribute("title", "105 of 4,096 positions of the context are used")


def test_regenerating_and_editing_make_branches(page: Page, scripted: Scripted) -> None:
    finished(ask(page, "first"))
    finished(ask(page, "second"))
    page.locator("[data-action=regenerate]").last.click()
    expect(page.locator(".versions")).to_have_text("2 / 2")
    finished(page.locator(".answer").last)
    assert [m["content"] for m in scripted.requests[2]["messages"]] == ["first", "You said: first", "second"]

    page.locator("[data-action=edit]").first.click()
    page.get_by_label("Edit your question").fill("other")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)
    finished(page.locator(".answer"))
    assert [m["content"] for m in scripted.requests[3]["messages"]] == ["other"]
    expect(page.locator(".bubble")).to_have_text("other")

    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".bubble")).to_have_text(["first", "second"])
    expect(page.locator(".answer .versions")).to_have_text("2 / 2")
    page.locator(".answer").last.get_by_role("button", name="Previous version").click()
    expect(page.locator(".answer .versions")).to_have_text("1 / 2")
    assert len(scripted.requests) == 4


def test_escape_leaves_an_edit_as_it_was(page: Page) -> None:
    finished(ask(page, "first"))
    page.locator("[data-action=edit]").click()
    page.get_by_label("Edit your question").fill("changed")
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("first")
    expect(page.locator("[data-action=edit]")).to_be_focused()


def test_errors_are_the_servers_sentence_and_can_be_tried_again(page: Page, scripted: Scripted) -> None:
    turn = finished(ask(page, "refuse"))
    expect(turn.get_by_role("alert")).to_contain_text("a JPEG that ends early: save or download it again")
    expect(turn.locator("button:has(svg)")).to_have_text(["Try again"])  # one way, not two
    turn.get_by_role("button", name="Try again").click()
    expect(turn.get_by_role("alert")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(1)
    eventually(page, lambda: len(scripted.requests), 2)


def test_a_stream_that_fails_keeps_what_it_said(page: Page) -> None:
    turn = finished(ask(page, "break"))
    expect(turn.locator(".said")).to_have_text("It begins")
    expect(turn.get_by_role("alert")).to_contain_text("start kimi-vl serve with a smaller -c")
    expect(turn.get_by_role("button", name="Continue")).to_be_visible()
    expect(turn.get_by_role("button", name="Try again")).to_be_visible()
    expect(turn.get_by_role("button", name="Regenerate")).to_have_count(0)


def test_the_view_follows_until_the_reader_scrolls_up(page: Page, scripted: Scripted) -> None:
    turn = ask(page, "long")
    gap = (
        "(() => { const e = document.querySelector('.log'); return e.scrollHeight - e.scrollTop - e.clientHeight; })()"
    )
    page.wait_for_function("() => document.querySelectorAll('.answer .block').length > 40")
    page.wait_for_function(f"() => {gap} < 2")
    expect(page.get_by_role("button", name="Jump to the end")).to_be_hidden()
    page.mouse.move(640, 300)
    page.mouse.wheel(0, -200)
    page.wait_for_function(f"() => {gap} > 100")
    top = at_rest(page, "document.querySelector('.log').scrollTop")
    scripted.gate("long").set()
    finished(turn)
    assert page.evaluate("document.querySelector('.log').scrollTop") == top
    page.get_by_role("button", name="Jump to the end").click()
    page.wait_for_function(f"() => {gap} < 2")


def test_two_conversations_answer_at_once(page: Page, scripted: Scripted) -> None:
    ask(page, "hold one")
    page.get_by_role("button", name="New conversation").first.click()
    finished(ask(page, "two"))
    scripted.gate("hold").set()
    page.get_by_role("button", name="hold one", exact=True).click()
    expect(finished(page.locator(".answer")).locator(".said")).to_have_text("You said: hold one")


def test_settings_go_into_the_request_and_wrong_ones_are_named(page: Page, scripted: Scripted) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press(",")
    page.get_by_label("Temperature").fill("hot")
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert").first).to_have_text("Temperature: enter a number from 0 to 10, or leave it empty.")
    for label, value in (
        ("Temperature", "0.5"),
        ("Seed", "42"),
        ("Longest answer", "99"),
        ("System message", "Be brief."),
    ):
        page.get_by_label(label).fill(value)
    page.get_by_label("JSON schema of the answer").fill("[1]")
    page.get_by_label("Thinking").select_option("budget")
    page.get_by_label("Tokens of thought").fill("256")
    expect(page.get_by_text("this is not a JSON object")).to_be_visible()
    page.get_by_label("JSON schema of the answer").fill('{"type": "string"}')
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    finished(ask(page, "hello"))
    body = scripted.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["max_tokens"], body["thinking_token_budget"]) == (0.5, 42, 99, 256)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "string"}
    page.reload()
    page.get_by_role("button", name="Settings").first.click()
    expect(page.get_by_label("Seed")).to_have_value("42")
    page.get_by_label("Thinking").select_option("off")
    page.keyboard.press("Escape")
    finished(ask(page, "again"))
    assert scripted.requests[1]["enable_thinking"] is False and "thinking_token_budget" not in scripted.requests[1]


def test_the_key_is_asked_for_and_kept_for_the_tab(open_page: Callable[..., Page], scripted: Scripted) -> None:
    scripted.key = "right"
    page = open_page()
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The server does not accept this key.")
    dialog.get_by_label("Key").fill("right")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    finished(ask(page, "hello"))
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('kimi-vl.key')]") == [1, None]
    page.reload()
    expect(page.locator(".model")).to_have_text("Kimi-VL-A3B-Thinking-2506")
    expect(dialog).to_be_hidden()


def test_a_lost_server_is_noticed_and_found_again(page: Page, scripted: Scripted) -> None:
    finished(ask(page, "before"))
    page.context.set_offline(True)
    turn = finished(ask(page, "meanwhile"))
    expect(turn.get_by_role("alert")).to_contain_text("Check that kimi-vl serve still runs")
    expect(page.locator(".banner")).to_contain_text("Trying again; your conversations are safe")
    page.context.set_offline(False)
    expect(page.locator(".banner")).to_be_hidden()
    turn.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer").last.locator(".said")).to_have_text("You said: meanwhile")


def test_a_loading_server_is_waited_for(open_page: Callable[..., Page], scripted: Scripted) -> None:
    scripted.health = (503, "the model is being loaded")
    page = open_page()
    expect(page.locator(".banner")).to_contain_text("loading its model")
    scripted.health = (200, "ok")
    expect(page.locator(".banner")).to_be_hidden()


def test_an_answer_without_its_renderer_is_plain_text(page: Page) -> None:
    page.route("**/ui/render", lambda route: route.abort())
    turn = finished(ask(page, "where"))
    expect(turn.locator(".plain")).to_contain_text("```python\npyautogui.click(x=0.75, y=0.5)")
