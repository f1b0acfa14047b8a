"""What the page costs: the token rate of an answer that the page shows, beside that of one which a plain client reads:

    python tests/server/page/rate.py http://127.0.0.1:8000 --rounds 5

The two take turns on a server that does nothing else. The rates are the server's own; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics

import httpx
from playwright.sync_api import Page, sync_playwright

QUESTION = "Write a long story about a lighthouse, with a table of its ships."


def plain_rate(url: str, fields: dict[str, object]) -> float:
    """The rate of an answer that is read and not shown."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True, **fields}
    rate = 0.0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=None, trust_env=False) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and "timings" in (chunk := json.loads(line[6:])):
                rate = chunk["timings"]["predicted_per_second"]
    return rate


def page_rate(page: Page, url: str, fields: dict[str, object]) -> float:
    """The same on the page."""

    def with_fields(route) -> None:  # type: ignore[no-untyped-def]
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), **fields}))

    page.goto(url)
    page.route("**/v1/chat/completions", with_fields)
    page.fill("#prompt", QUESTION)
    page.keyboard.press("Enter")
    figures = page.locator(".figures")
    figures.wait_for(timeout=0)
    found = re.search(r"([\d.,]+)\s*tokens/s", figures.inner_text())
    assert found is not None
    return float(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400)
    asked = parser.parse_args()
    fields = {"max_tokens": asked.tokens, "ignore_eos": True, "temperature": 0.8, "seed": 1}
    plain, shown = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(asked.rounds):
            plain.append(plain_rate(asked.url, fields))
            with browser.new_page() as page:
                shown.append(page_rate(page, asked.url, fields))
        browser.close()
    for name, rates in (("read", plain), ("shown", shown)):
        print(f"{name:6} {statistics.median(rates):8.1f} tokens/s  ({min(rates):.1f} to {max(rates):.1f})")
    print(f"the page costs {1 - statistics.median(shown) / statistics.median(plain):.1%}")


if __name__ == "__main__":
    main()
