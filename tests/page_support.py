"""What tests of the page share. A page acts a moment after it is asked to: what is read off it once is what it was at
some moment, so a test waits for what it expects (Playwright's `expect`, and these where that has no word for it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

PATIENCE = 20_000  # ms
PAUSE = 20  # ms


def eventually(page: Page, read: Callable[[], Any], expected: Any) -> None:
    """Reads until it is as expected; fails with what was read last."""
    for _ in range(PATIENCE // PAUSE):
        if read() == expected:
            return
        page.wait_for_timeout(PAUSE)
    assert read() == expected


def at_rest(page: Page, script: str) -> Any:
    """The value of a script that no longer changes: ten frames in a row."""
    settle = f"""async () => {{
      let last = {script};
      for (let same = 0; same < 10; ) {{
        await new Promise(requestAnimationFrame);
        const now = {script};
        same = now === last ? same + 1 : 0;
        last = now;
      }}
      return last;
    }}"""
    return page.evaluate(settle)
