"""The dashboard in a browser beside a real model, and a server that ends and starts again."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from visiting import CHROMIUM, FLAGS, visiting

from serving import Server, serve

PLUGINS = {"JACKFIELD_PLUGINS": "confidence,dashboard"}
STORY = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("starter", **PLUGINS) as server:
        yield server


def ask(server: Server, most: int) -> None:
    body = {"model": "starter", "messages": STORY, "max_tokens": most, "temperature": 0}
    httpx2.post(f"{server.api}/chat/completions", json=body, headers={"X-Request-ID": "story"}, timeout=240)


def test_numbers_move_while_an_answer_is_written(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url) as seen:
        seen.state("live")
        expect(seen.card("speed").locator(".value")).to_have_text("0 tok/s")
        asking = threading.Thread(target=ask, args=(server, 100))
        asking.start()
        expect(seen.row("story")).to_contain_text("Answering")
        expect(seen.card("load").locator(".value")).to_have_text("1")
        expect(seen.card("speed").locator(".value")).not_to_have_text("0 tok/s")
        asking.join()
        expect(seen.row("story")).to_contain_text(re.compile(r"Done (length|stop)"))
        expect(seen.card("load").locator(".value")).to_have_text("0")
        expect(seen.card("first-token").locator(".notes")).to_contain_text("1 answer")
        expect(seen.card("memory").locator(".value")).to_have_text(re.compile(r"[MG]B$"))


def test_the_model_answers_with_its_confidence(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url) as seen:
        seen.state("live")
        seen.page.get_by_label("Max. tokens").fill("12")
        seen.page.get_by_label("Temperature").fill("0")
        seen.say("What is the capital of France?")
        answer = seen.answered()
        expect(answer.locator(".text").last).to_contain_text("Paris")
        facts = answer.locator(".facts")
        expect(facts).to_have_text(re.compile(r"\d+ tokens · .+ tok/s · first after .+ · confidence [01]\.\d\d, \w+"))
        expect(seen.page.locator("#request-table tbody tr").first).to_contain_text("Done")


def test_a_server_that_comes_back_is_found(browser: Browser) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as first:
        server = first.enter_context(serve("starter", "--port", port, **PLUGINS))
        # What is not there cannot be loaded, and the browser says so.
        with visiting(browser, server.url, forgiven="Failed to load resource") as seen:
            seen.state("live")
            ask(server, 1)
            expect(seen.row("story")).to_be_visible()
            first.close()
            seen.state("lost")
            expect(seen.page.locator("#connection")).to_have_text("Not connected, trying again …")
            seen.say("Are you there?")
            expect(seen.page.locator("#chat-status")).to_have_text("The server cannot be reached.")
            expect(seen.page.get_by_label("Message")).to_have_value("Are you there?")
            with serve("starter", "--port", port, **PLUGINS):
                seen.state("live")
                expect(seen.page.locator("#no-requests")).to_contain_text("No requests yet")
                seen.page.get_by_label("Max. tokens").fill("4")
                seen.page.get_by_label("Message").press("Enter")
                expect(seen.answered().locator(".facts")).to_contain_text("tokens")
