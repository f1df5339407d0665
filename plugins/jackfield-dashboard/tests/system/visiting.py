"""A page in headless Chromium, and who watches over it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.sync_api import Browser, Locator, Page, expect

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
PATIENCE = 30_000
"""Milliseconds for what happens by and by."""

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


@dataclass
class Visit:
    """An open page, and what it has said and asked for."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    """What stands in the browser's console, and errors that nobody caught."""
    asked: list[str] = field(default_factory=list)
    """All addresses."""

    def open(self) -> None:
        """Go there, or there again."""
        self.page.goto(f"{self.url}/dashboard/")

    def state(self, how: str) -> None:
        """Wait until the connection is like this."""
        self.page.locator(f"#connection[data-state={how}]").wait_for()

    def row(self, request_id: str) -> Locator:
        """A request in the table."""
        return self.page.locator("#request-table tbody tr", has_text=request_id)

    def card(self, name: str) -> Locator:
        """One of the cards, by its id."""
        return self.page.locator(f"#{name}")

    def say(self, text: str) -> None:
        """Write to the model, and send it."""
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_label("Message").press("Enter")

    def answered(self) -> Locator:
        """The last turn, once it is whole."""
        expect(self.page.locator("#conversation")).to_have_attribute("aria-busy", "false")
        return self.page.locator("#conversation .turn").last

    def barriers(self) -> list[str]:
        """What axe finds that keeps people out."""
        self.page.evaluate(AXE)
        found: dict[str, Any] = self.page.evaluate("axe.run()")
        return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@contextmanager
def visiting(browser: Browser, url: str, *, forgiven: str = "$^", **context: Any) -> Iterator[Visit]:
    """The page of a server, live or as far as it gets; what it complains of is a failure unless it is ``forgiven``."""
    expect.set_options(timeout=PATIENCE)
    with browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **context}) as opened:
        opened.set_default_timeout(PATIENCE)
        visit = Visit(opened.new_page(), url)
        visit.page.on("console", lambda said: visit.complaints.append(f"{said.type}: {said.text}"))
        visit.page.on("pageerror", lambda error: visit.complaints.append(f"uncaught: {error}"))
        visit.page.on("request", lambda request: visit.asked.append(request.url))
        visit.open()
        yield visit
    assert [said for said in visit.complaints if not re.search(forgiven, said)] == []
    assert [address for address in visit.asked if not address.startswith(f"{url}/")] == []
