"""The dashboard in a browser, over an engine that says what it is told to."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from starlette.requests import HTTPConnection
from visiting import CHROMIUM, FLAGS, Visit, visiting

from jackfield.errors import EngineError
from jackfield.hooks import Confidence, Identity, hookimpl
from jackfield.testing import JackfieldServer, StartServer

SECRET = "xyzzy-plugh"
MARKUP = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
PHONE = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}

Open = Callable[..., AbstractContextManager[Visit]]


class Door:
    """Knows two keys."""

    @hookimpl
    async def authenticate(self, request: HTTPConnection) -> Identity | None:
        scope = {"Bearer boss": "admin", "Bearer user": "inference"}.get(request.headers.get("authorization", ""))
        return Identity(str(scope), frozenset({scope})) if scope else None


class Judge:
    """Trusts every answer alike."""

    @hookimpl
    async def score_confidence(self) -> Confidence:
        return Confidence(0.75, "high", {})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server("dashboard", ("judge", Judge()))


@pytest.fixture
def visit(browser: Browser, server: JackfieldServer) -> Open:
    return partial(visiting, browser, server.url)


def busy(server: JackfieldServer) -> None:
    """A server that has something to show."""
    statistics = server.engine.statistics
    statistics.running, statistics.device_bytes, statistics.kv_bytes = 2, 5_000_000_000, 700_000_000
    statistics.cache_bytes = {"memory": 300_000_000, "disk": 2_000_000_000}
    statistics.pressure = "slowing"
    server.says("Good morning.", cached_tokens=3)
    server.chat("Hi", headers={"X-Request-ID": "answered"}, stream=True)
    server.chat("Hi", headers={"X-Request-ID": "refused"}, max_tokens=-1)
    server.record("failed", "refused")


# --- What it shows ---------------------------------------------------------------------------------------------------


def test_figures_follow_the_engine(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit() as seen:
        seen.state("live")
        expect(seen.card("load").locator(".value")).to_have_text("2")
        expect(seen.card("memory").locator(".value")).to_have_text("5 GB")
        expect(seen.card("memory")).to_contain_text("short: requests wait")
        expect(seen.card("cache")).to_contain_text("300 MB in memory")
        expect(seen.card("cache")).to_contain_text("2 GB on disk")
        server.engine.statistics.running = 7
        expect(seen.card("load").locator(".value")).to_have_text("7")
        chart = seen.card("load").get_by_role("img")
        expect(chart).to_have_attribute("aria-label", re.compile("Running: now 7, lowest 0, highest 7"))
        server.engine.statistics.generated_tokens += 5000
        expect(seen.card("speed").locator(".notes")).to_contain_text("5,000 since the start")
        assert re.search(r"highest [\d,]+ tok/s", seen.card("speed").inner_text())


def test_a_request_is_seen_on_its_way(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        expect(seen.page.locator("#no-requests")).to_contain_text("No requests yet")
        with server.held(), server.streaming("Hi", headers={"X-Request-ID": "mine"}) as chunks:
            next(chunks)
            expect(seen.row("mine")).to_contain_text("Answering")
            seen.page.get_by_text("At work 1").click()
            expect(seen.row("mine")).to_be_visible()
        expect(seen.row("mine")).to_have_count(0)
        expect(seen.page.locator("#no-requests")).to_contain_text("No request is being worked on")
        seen.page.get_by_text("All", exact=True).click()
        expect(seen.row("mine")).to_contain_text("Hung up")


def test_an_answer_is_seen_with_its_numbers(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit() as seen:
        row = seen.row("answered")
        expect(row).to_contain_text("Done stop")
        expect(row).to_contain_text("3 cached")
        expect(row).to_contain_text(re.compile(r"13 [\d.,]+ tok/s"))
        expect(row).to_contain_text("0.75 high")
        expect(seen.card("first-token")).to_contain_text("1 answer")
        expect(seen.card("between-tokens").locator("path.dots")).to_have_attribute("d", re.compile("^M"))


def test_a_failure_is_seen_with_its_code(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    code = server.record("failed", "refused").data["code"]
    with visit() as seen:
        expect(seen.row("refused")).to_contain_text(f"400 {code}")
        seen.page.get_by_text("Failed 1").click()
        expect(seen.page.locator("#request-table tbody tr")).to_have_count(1)
        seen.page.get_by_text("Slow 0").click()
        expect(seen.page.locator("#no-requests")).to_have_text("No first token was slow.")


def test_nothing_that_was_said_is_seen(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        server.says(f"You said {SECRET}.")
        said = server.chat(f"Say {SECRET}!", stream=True, user=SECRET)
        assert SECRET in said.content
        wrong = server.chat(SECRET, tools=SECRET)
        expect(seen.row(said.request_id)).to_contain_text("Done")
        expect(seen.row(wrong.request_id)).to_contain_text("Failed")
        assert SECRET not in seen.page.content()
    assert SECRET not in server.get("/dashboard/state").text


def test_models_and_plugins_are_listed(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        model = seen.page.locator("#model-table tbody tr")
        expect(model).to_contain_text(re.compile(r"scripted\s*ready.*4,096 tokens"))
        server.engine.state = "recovering"
        expect(model).to_contain_text("recovering")
        expect(seen.page.locator("#plugin-table")).to_contain_text("dashboard")
        expect(seen.page.locator("#plugin-table")).to_contain_text("judge")


def test_older_requests_are_there_when_asked_for(server: JackfieldServer, visit: Open) -> None:
    for _ in range(27):
        server.chat("Hi", max_tokens=-1)
    with visit() as seen:
        rows = seen.page.locator("#request-table tbody tr")
        expect(rows).to_have_count(25)
        seen.page.get_by_role("button", name="Show more").click()
        expect(rows).to_have_count(27)
        expect(seen.page.get_by_role("button", name="Show more")).to_be_hidden()


def test_charts_are_tables_too(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit() as seen:
        seen.state("live")
        seen.card("load").get_by_text("Figures").click()
        first = seen.card("load").locator("tbody tr").first
        expect(first).to_contain_text(re.compile(r"\d\d:\d\d:\d\d"))
        expect(first.locator("td").first).to_have_text("2")
        expect(seen.card("load").locator("tbody tr")).to_have_count(10)


def test_the_time_that_charts_show_can_be_chosen(visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        chart = seen.card("load").get_by_role("img")
        expect(chart).to_have_attribute("aria-label", re.compile("last 5 min"))
        for text, said in (("15 min", "last 15 min"), ("1 min", "last 60 s")):
            seen.page.locator("#span").get_by_text(text, exact=True).click()
            expect(chart).to_have_attribute("aria-label", re.compile(said))


def test_a_pause_holds_everything(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        seen.page.get_by_role("button", name="Pause").click()
        seen.state("paused")
        server.engine.statistics.running = 3
        server.wait_until(lambda: server.get("/dashboard/state").json["history"][-1]["running"] == 3)
        expect(seen.card("load").locator(".value")).to_have_text("0")
        seen.page.get_by_role("button", name="Pause").click()
        expect(seen.card("load").locator(".value")).to_have_text("3")


# --- The chat --------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        for said in ("Good morning.", "I am well."):
            server.says(said)
            seen.say("Hello?")
            expect(seen.answered().locator(".text").last).to_have_text(said)
        facts = seen.answered().locator(".facts")
        expect(facts).to_have_text(re.compile(r"10 tokens · [\d.,]+ tok/s · first after .+ · judge 0\.75, high"))
        request = server.requests[-1]
        assert "Good morning." in server.tokenizer.decode(request.prompt)
        assert request.max_tokens == 512
        seen.page.get_by_role("button", name="Clear").click()
        expect(seen.page.locator("#conversation")).to_have_text("Nothing said yet. What you write stays in this page.")
        seen.say("Hello again?")
        seen.answered()
        assert "Good morning." not in server.tokenizer.decode(server.requests[-1].prompt)


def test_an_answer_streams_and_can_be_stopped(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        server.says("word " * 400, seconds_per_token=0.01)
        seen.page.get_by_label("Max. tokens").fill("2000")
        seen.say("Go on for ever.")
        text = seen.page.locator(".turn.assistant .text").last
        expect(text).to_contain_text("word word")
        before = len(text.inner_text())
        seen.page.wait_for_function(
            "before => document.querySelector('.turn.assistant > .text').textContent.length > before", arg=before
        )
        stop = seen.page.get_by_role("button", name="Stop")
        stop.focus()
        stop.press("Enter")
        expect(seen.page.locator("#chat-status")).to_have_text("Stopped.")
        expect(seen.answered().locator(".facts")).to_contain_text("stopped")
        expect(seen.page.get_by_label("Message")).to_be_focused()
        request_id = server.record("cancelled").request.id
        expect(seen.row(request_id)).to_contain_text("Hung up")


def test_settings_go_with_a_message(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        seen.page.get_by_label("Max. tokens").fill("3")
        seen.page.get_by_label("Temperature").fill("0.5")
        seen.say("Hello?")
        expect(seen.answered().locator(".facts")).to_contain_text("cut at max. tokens · 3 tokens")
        assert (server.requests[-1].max_tokens, server.requests[-1].sampling.temperature) == (3, 0.5)
        seen.page.get_by_label("Max. tokens").fill("0")
        seen.say("Hello?")
        expect(seen.page.get_by_label("Message")).to_have_value("Hello?")
        assert len(server.requests) == 1


def test_an_error_gives_the_message_back(server: JackfieldServer, visit: Open) -> None:
    with visit(forgiven="400") as seen:
        seen.state("live")
        seen.say("long " * 2000)
        expect(seen.page.locator("#chat-status")).to_contain_text("tokens")
        expect(seen.page.locator("#chat-status")).to_have_class("wrong")
        expect(seen.page.get_by_label("Message")).to_have_value(re.compile("^long long"))
        expect(seen.page.locator("#conversation")).to_contain_text("Nothing said yet")


def test_what_was_said_before_an_error_stays(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        server.says("Good morn", error=EngineError("It broke."))
        seen.say("Hello?")
        expect(seen.answered().locator(".text").last).to_have_text("Good morn")
        expect(seen.answered().locator(".facts")).to_contain_text("broken off: the engine failed · 9 tokens")
        expect(seen.page.get_by_label("Message")).to_have_value("")


def test_thoughts_are_folded_away(visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        deltas = ('{"reasoning_content":"Hm, hm."}', '{"content":"Yes."}')
        body = "".join(f'data: {{"choices":[{{"index":0,"delta":{delta}}}]}}\n\n' for delta in deltas)
        seen.page.route(
            "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
        )
        seen.say("Is it?")
        answer = seen.answered()
        expect(answer.get_by_text("Yes.")).to_be_visible()
        expect(answer.get_by_text("Hm, hm.")).to_be_hidden()
        answer.get_by_text("Thoughts").click()
        expect(answer.get_by_text("Hm, hm.")).to_be_visible()


def test_markup_from_outside_stays_text(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        refused = server.post(
            "/v1/chat/completions", {"model": MARKUP[:60], "messages": [{"role": "user", "content": "Hi"}]}
        )
        assert refused.status == 404
        expect(seen.row(refused.request_id)).to_contain_text(MARKUP[:60])
        server.says(MARKUP)
        seen.say(MARKUP)
        expect(seen.answered().locator(".text").last).to_have_text(MARKUP)
        assert seen.page.locator("img").count() == 1
        assert seen.page.title() == "Jackfield"


# --- Keys, and a server that goes away -------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_in_this_tab(browser: Browser, jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", ("door", Door()))
    with visiting(browser, server.url, forgiven="401|403") as seen:
        dialog = seen.page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("The server asks for a key.")
        for key, said in (("wrong", "does not know this key"), ("user", "takes the scope admin")):
            dialog.get_by_label("Key").fill(key)
            dialog.get_by_role("button", name="Use it").click()
            expect(dialog).to_contain_text(said)
        seen.state("key")
        dialog.get_by_label("Key").fill("boss")
        dialog.get_by_label("Key").press("Enter")
        seen.state("live")
        expect(dialog).to_be_hidden()
        server.says("Good morning.")
        seen.say("Hello?")
        expect(seen.answered().locator(".text").last).to_have_text("Good morning.")
        seen.open()
        seen.state("live")
        assert not any("boss" in address for address in seen.asked)
        assert seen.page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
        seen.page.get_by_role("button", name="API key").click()
        dialog.get_by_role("button", name="Forget it").click()
        seen.state("key")
        assert seen.page.evaluate("sessionStorage.length") == 0
    with visiting(browser, server.url, forgiven="401") as another:
        another.state("key")
        another.page.keyboard.press("Escape")
        expect(another.page.get_by_role("dialog")).to_be_hidden()
        another.page.get_by_role("button", name="API key").click()
        expect(another.page.get_by_role("dialog")).to_be_visible()


def test_a_full_server_says_so(browser: Browser, jackfield_server: StartServer) -> None:
    server = jackfield_server("dashboard", settings={"dashboard": {"most_watchers": 1}})
    with visiting(browser, server.url) as first:
        first.state("live")
        with visiting(browser, server.url, forgiven="503") as second:
            second.state("lost")
            expect(second.page.locator("#connection")).to_contain_text("1 pages are open already")
            first.page.close()
            second.state("live")


# --- For everybody ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, PHONE, {"forced_colors": "active"}], ids=str)
def test_nothing_keeps_people_out(server: JackfieldServer, visit: Open, context: dict[str, Any]) -> None:
    busy(server)
    with visit(bypass_csp=True, **context) as seen:
        seen.state("live")
        expect(seen.row("refused")).to_be_visible()
        seen.say("Hello?")
        seen.answered()
        assert seen.barriers() == []
        for card in ("load", "memory"):
            seen.card(card).get_by_text("Figures").click()
        seen.page.get_by_role("button", name="API key").click()
        assert seen.barriers() == []


def test_screen_readers_find_their_way(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit() as seen:
        seen.state("live")
        expect(seen.row("refused")).to_be_visible()
        expect(seen.card("memory").get_by_role("img")).to_have_attribute("aria-label", re.compile("now 5 GB"))
        tree = seen.page.locator("body").aria_snapshot()
    for part in (
        'link "Skip to what the server does"',
        'heading "Jackfield" [level=1]',
        "status: Live",
        'navigation "Sections"',
        'region "Now"',
        'group "How far back the charts go"',
        'radio "5 min" [checked]',
        'region "Memory"',
        'heading "Memory" [level=3]',
        'img "Memory, last 5 min. Device, in all: now 5 GB, lowest 0 B, highest 5 GB. Keys and values: now 700 MB',
        'group "Which requests to show"',
        'columnheader "First token"',
        'region "Plugins"',
        'complementary "Try a model"',
        'combobox "Model"',
        'spinbutton "Max. tokens"',
        'log "Conversation"',
        'textbox "Message"',
        'button "Send"',
    ):
        assert part in tree, f"{part} is not in\n{tree}"


def test_nothing_chatters(server: JackfieldServer, visit: Open) -> None:
    with visit() as seen:
        seen.state("live")
        live = seen.page.evaluate(
            "[...document.querySelectorAll('[role=status], [role=log], [aria-live]')].map(e => e.id)"
        )
        assert live == ["connection", "conversation", "chat-status"]
        seen.page.evaluate(
            "window.said = 0; new MutationObserver(all => window.said += all.length)"
            ".observe(document.getElementById('connection'), {subtree: true, childList: true, characterData: true})"
        )
        for running in (3, 4):
            server.engine.statistics.running = running
            expect(seen.card("load").locator(".value")).to_have_text(str(running))
        assert seen.page.evaluate("window.said") == 0


def test_all_of_it_works_with_the_keyboard(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit() as seen:
        seen.state("live")
        expect(seen.row("refused")).to_be_visible()
        keyboard, focused = seen.page.keyboard, seen.page.locator(":focus")
        keyboard.press("Tab")
        expect(focused).to_have_text("Skip to what the server does")
        assert focused.bounding_box()["y"] >= 0
        keyboard.press("Enter")
        passed = []
        for _ in range(60):
            keyboard.press("Tab")
            name = focused.evaluate("e => e.id || e.textContent.trim()")
            shown = focused.evaluate(
                "e => getComputedStyle(e.type === 'radio' ? e.nextElementSibling : e).outlineStyle !== 'none'"
            )
            assert shown, f"focus is not seen at {name}"
            passed.append(name)
            if name == "span-300":
                keyboard.press("ArrowRight")
                expect(seen.page.locator("#span-900")).to_be_checked()
            if name == "filter-all":
                keyboard.press("ArrowRight")
                keyboard.press("ArrowRight")
                expect(seen.page.locator("#filter-failed")).to_be_checked()
            if name == "Figures of Requests":
                keyboard.press("Enter")
                expect(seen.card("load").get_by_role("table")).to_be_visible()
            if name == "prompt":
                break
        assert [name for name in passed if name in ("span-300", "filter-all", "clear", "chat-model", "prompt")] == [
            "span-300",
            "filter-all",
            "clear",
            "chat-model",
            "prompt",
        ]
        server.says("Good morning.")
        keyboard.type("Hello?")
        keyboard.press("Shift+Enter")
        keyboard.type("Anybody?")
        keyboard.press("Enter")
        expect(seen.answered().locator(".text").last).to_have_text("Good morning.")
        expect(seen.page.locator(".turn.user .text")).to_have_text("Hello?\nAnybody?", use_inner_text=True)
        expect(seen.page.locator("#prompt")).to_be_focused()


def test_it_is_dark_or_light_as_people_like_it(visit: Open) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    colours = {}
    for scheme in ("light", "dark"):
        with visit(color_scheme=scheme) as seen:
            colours[scheme] = seen.page.evaluate(background)
    assert colours["light"] != colours["dark"]
    with visit(color_scheme="light") as seen:
        seen.page.get_by_label("Theme").select_option("dark")
        assert seen.page.evaluate(background) == colours["dark"]
        seen.open()
        assert seen.page.evaluate(background) == colours["dark"]
        expect(seen.page.get_by_label("Theme")).to_have_value("dark")
        seen.page.get_by_label("Theme").select_option("")
        assert seen.page.evaluate(background) == colours["light"]


def test_a_phone_need_not_scroll_sideways(server: JackfieldServer, visit: Open) -> None:
    busy(server)
    with visit(**PHONE) as seen:
        seen.state("live")
        expect(seen.row("refused")).to_be_visible()
        server.says("w" * 300)
        seen.say("W" * 300)
        seen.answered()
        seen.card("load").get_by_text("Figures").click()
        assert seen.sideways() <= 0
        assert seen.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('conversation'))") <= 0
        seen.page.get_by_role("button", name="API key").click()
        assert seen.sideways() <= 0


def test_nothing_moves_for_those_who_do_not_want_it(server: JackfieldServer, visit: Open) -> None:
    moving = "document.getAnimations().length"
    with server.held(), server.streaming("Hi", headers={"X-Request-ID": "held"}) as chunks:
        next(chunks)
        for motion, expected in (("reduce", 0), ("no-preference", 1)):
            with visit(reduced_motion=motion) as seen:
                expect(seen.row("held")).to_contain_text("Answering")
                assert seen.page.evaluate(moving) == expected
