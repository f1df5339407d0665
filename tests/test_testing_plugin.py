"""What authors of plugins test with: jackfield.testing."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from jackfield.engine.request import CacheUse, FinishEvent, StartEvent
from jackfield.errors import ConfigurationError, EngineError
from jackfield.hooks import (
    Confidence,
    Event,
    JsonObject,
    LogitsProcessor,
    LogRecord,
    RequestInfo,
    SamplingParameters,
    Server,
    Signal,
    TokenEvent,
    TokenSampler,
    hookimpl,
)
from jackfield.testing import JackfieldServer, StartServer, serving


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    """One without plugins."""
    return jackfield_server()


# --- The pytest plugin itself ---------------------------------------------------------------------------------------


def python(code: str) -> str:
    """What a new Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_pytest_finds_it_by_its_entry_point() -> None:
    (point,) = entry_points(group="pytest11", name="jackfield")
    assert point.value == "jackfield.testing"


def test_importing_it_imports_nothing_else() -> None:
    """It is imported in every run of pytest, before coverage is measured."""
    code = "import sys, jackfield.testing; print(*sorted(m for m in sys.modules if m.startswith('jackfield')))"
    assert python(code).split() == ["jackfield", "jackfield.testing"]
    heavy = ("mlx", "numpy", "pydantic", "starlette", "transformers", "uvicorn")
    assert python(f"import sys, jackfield.testing; print(*sys.modules.keys() & {heavy})").split() == []


def test_what_it_exports_is_there() -> None:
    import jackfield.testing

    for name in jackfield.testing.__all__:
        assert getattr(jackfield.testing, name)
    with pytest.raises(AttributeError, match="nothing"):
        jackfield.testing.nothing  # noqa: B018


def pytest_run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A test file's run in a process of its own."""
    (folder / "test_it.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ,
        cwd=folder,
    )


FAILING = """\
from jackfield.hooks import hookimpl

class Plugin:
    @hookimpl
    def transform_response(self, response):
        raise RuntimeError("not this one")

def test_it(jackfield_server):
    assert jackfield_server(("fails", Plugin())).chat("Hi").status == 200

def test_that_it_may(jackfield_server):
    assert jackfield_server(("fails", Plugin()), may_fail=True).chat("Hi").status == 200
"""


def test_a_plugin_that_fails_unnoticed_fails_the_test_unless_it_may(tmp_path: Path) -> None:
    result = pytest_run(tmp_path, FAILING)
    assert result.returncode == 1, result.stdout
    assert "fails (active): transform_response: RuntimeError in " in result.stdout
    assert "ERROR test_it.py::test_it - " in result.stdout
    assert "2 passed, 1 error" in result.stdout


# --- What it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_it_says_what_it_is_told_one_after_the_other(server: JackfieldServer, stream: bool) -> None:
    server.says("Good morning, Zoë! 🎺")
    server.says("")
    server.says("Good night.", finish="length")
    replies = [server.chat("Hi", stream=stream) for _ in range(3)]
    assert [reply.content for reply in replies] == ["Good morning, Zoë! 🎺", "", "Good night."]
    assert [reply.finish_reason for reply in replies] == ["stop", "stop", "length"]


def test_untold_it_says_something(server: JackfieldServer) -> None:
    assert server.chat("Hi").content
    assert server.chat("Hi").content == server.chat([{"role": "user", "content": "Something else"}]).content


def agent(prompt: str) -> str:
    """A model that asks for the weather, and tells what it has heard."""
    turn = prompt.rpartition("<|im_end|>")[0].rpartition("<|im_start|>")[2]
    if "<tool_response>" in turn:
        return f"It says{turn.removeprefix('user')}"
    return (
        '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' if "tools" in prompt else "Hello."
    )


def test_a_function_holds_a_whole_conversation(server: JackfieldServer) -> None:
    server.answers(agent)
    assert server.chat("Hi").content == "Hello."
    tools = [{"type": "function", "function": {"name": "weather"}}]
    conversation: list[JsonObject] = [{"role": "user", "content": "Is it raining?"}]
    (call,) = server.chat(conversation, tools=tools).tool_calls
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    conversation += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "rain"},
    ]
    assert server.chat(conversation, tools=tools).content.split() == [
        "It",
        "says",
        "<tool_response>",
        "rain",
        "</tool_response>",
    ]


def test_what_was_told_goes_before_what_a_function_makes(server: JackfieldServer) -> None:
    server.answers(str.upper)
    server.says("told")
    assert [server.chat("Hi").content for _ in range(2)] == [
        "told",
        "<|IM_START|>USER\nHI<|IM_END|>\n<|IM_START|>ASSISTANT\n",
    ]


def test_a_function_that_fails_fails_the_request(server: JackfieldServer) -> None:
    server.answers({}.__getitem__)
    reply = server.chat("Hi")
    assert reply.status == 503
    assert "KeyError" in reply.json["error"]["message"]


def test_each_choice_gets_its_own(server: JackfieldServer) -> None:
    server.says("one")
    server.says("two")
    reply = server.chat("Hi", n=2)
    assert [reply.content_of(choice) for choice in range(2)] == ["one", "two"]
    assert len(server.requests) == 2


def test_completions_are_answered_too(server: JackfieldServer) -> None:
    server.says("and so on")
    reply = server.post("/v1/completions", {"model": "scripted", "prompt": "One, two"})
    assert reply.content == "and so on"
    assert server.tokenizer.decode(server.requests[0].prompt) == "One, two"


def test_it_ends_where_the_request_ends(server: JackfieldServer) -> None:
    server.says("A long story")
    reply = server.chat("Hi", max_tokens=6)
    assert (reply.content, reply.finish_reason) == ("A long", "length")
    server.says("A long story")
    assert server.chat("Hi", stop=["ory"]).content == "A long st"


def test_it_fails_when_it_is_told_to(server: JackfieldServer) -> None:
    server.says("", error=EngineError("It broke."))
    reply = server.chat("Hi")
    assert (reply.status, reply.json["error"]["message"]) == (503, "It broke.")
    with pytest.raises(AssertionError, match="It broke"):
        assert reply.content


def test_events_of_the_engine_can_be_played(server: JackfieldServer) -> None:
    letter, end = server.tokenizer.encode("ab"), FinishEvent("stop", preemptions=3)
    steps = [[StartEvent(0.5, CacheUse(2, miss="diverged"))], [TokenEvent(letter[0]), TokenEvent(letter[1]), end]]
    server.plays(steps)
    reply = server.chat("Hi", jackfield=True)
    (choice,) = reply.extension["choices"]
    assert reply.content == "ab"
    assert (choice["preemptions"], choice["queue_seconds"], choice["cache"]["miss"]) == (3, 0.5, "diverged")


def test_held_answers_go_on_when_they_may(server: JackfieldServer) -> None:
    server.says("word by word")
    with ExitStack() as stack:
        with server.held():
            chunks = stack.enter_context(server.streaming("Hi"))
            first = next(text for chunk in chunks if (text := chunk["choices"][0]["delta"].get("content")))
            assert first == "w"
            assert "completed" not in [record.kind for record in server.records]
        rest = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert rest == "ord by word"


def test_it_is_as_slow_as_it_is_told_to_be(jackfield_server: StartServer) -> None:
    server = jackfield_server(slow_seconds=0.001)
    server.says("Hi", seconds_per_token=0.01)
    assert server.chat("Hi").content == "Hi"
    assert server.event("slow").data["first_token_seconds"] > 0.01


def test_a_part_of_the_prompt_may_have_been_cached(server: JackfieldServer) -> None:
    server.says("Hi", cached_tokens=5)
    assert server.chat("Hi").json["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


def test_who_hangs_up_stops_the_work(server: JackfieldServer) -> None:
    with server.held():
        with server.streaming("Hi") as chunks:
            next(chunks)
        assert server.record("cancelled").request.stream
        assert server.event("cancelled").level == "info"
    assert server.engine.cancelled == [request.id for request in server.requests]


def test_streaming_says_what_is_wrong(server: JackfieldServer) -> None:
    with pytest.raises(AssertionError, match=r"400.*temperature"), server.streaming("Hi", temperature=-1):
        pass


def test_the_engines_state_can_be_set(server: JackfieldServer) -> None:
    server.engine.state = "recovering"
    assert server.get("/ready").status == 503
    server.engine.statistics.waiting = 7
    assert "jackfield_num_requests_waiting" in server.get("/metrics").text


def test_headers_go_out_and_come_back(server: JackfieldServer) -> None:
    assert server.chat("Hi", headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine"
    assert server.request("HEAD", "/health").status == 200
    assert server.get("/nowhere").status == 404


# --- With plugins ---------------------------------------------------------------------------------------------------


class Judge:
    """Keeps the tokens it is shown."""

    def __init__(self, *signals: Signal) -> None:
        self.signals = set(signals)
        self.tokens: list[TokenEvent] = []

    @hookimpl
    def token_signals(self) -> set[Signal]:
        return self.signals

    @hookimpl
    def score_confidence(self, tokens: Sequence[TokenEvent]) -> Confidence:
        self.tokens = list(tokens)
        return Confidence(0.5, "medium")


def test_signals_are_as_told(jackfield_server: StartServer) -> None:
    judge = Judge("logprob", "entropy", "top_k")
    server = jackfield_server(("judge", judge))
    server.says("abc", logprob=[-0.1, -2.0, -0.3], entropy=0.25)
    reply = server.chat("Hi", jackfield=True)
    assert [(token.logprob, token.entropy) for token in judge.tokens] == [(-0.1, 0.25), (-2.0, 0.25), (-0.3, 0.25)]
    for token in judge.tokens:
        assert len(token.top) == 20
        assert (token.id, token.logprob) in token.top
        assert [logprob for _, logprob in token.top] == sorted((p for _, p in token.top), reverse=True)
    assert reply.extension["choices"][0]["confidence"]["judge"]["score"] == 0.5


def test_signals_that_nobody_asked_for_are_not_there(jackfield_server: StartServer) -> None:
    judge = Judge()
    jackfield_server(("judge", judge)).chat("Hi")
    assert judge.tokens
    assert all((token.logprob, token.entropy, token.top) == (None, None, ()) for token in judge.tokens)


def test_as_many_numbers_as_tokens(server: JackfieldServer) -> None:
    with pytest.raises(ValueError, match="3 tokens"):
        server.says("abc", logprob=[-0.1])


class Steering:
    """Changes what is said on the engine's thread."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.seen: list[tuple[int, ...]] = []
        self.threads: set[str] = set()

    def process(self, tokens: tuple[int, ...], logits: Any) -> Any:
        self.seen.append(tokens)
        self.threads.add(threading.current_thread().name)
        logits[self.token] = 100.0
        return logits

    @hookimpl
    def logits_processors(self, request: RequestInfo) -> Sequence[LogitsProcessor]:
        return [self.process] if "processor" in request.options["steering"] else []

    @hookimpl
    def make_sampler(self, request: RequestInfo, sampling: SamplingParameters) -> TokenSampler | None:
        import mlx.core as mx

        return (lambda logits: mx.array(self.token)) if "sampler" in request.options["steering"] else None


def test_processors_and_samplers_choose(jackfield_server: StartServer, server: JackfieldServer) -> None:
    (token,) = server.tokenizer.encode("x")
    steering = Steering(token)
    steered = jackfield_server(("steering", steering))
    for means, expected in (("processor", "xxx"), ("sampler", "xxx"), ("none", "abc")):
        steered.says("abc")
        assert steered.chat("Hi", jackfield={"steering": {means: True}}).content == expected
    prompt = steered.requests[0].prompt
    assert steering.seen == [prompt, (*prompt, token), (*prompt, token, token)]
    assert all(name.startswith("scripted-engine") for name in steering.threads)


def test_what_fails_in_the_engine_ends_the_answer(server: JackfieldServer) -> None:
    server.plays(None)  # type: ignore[arg-type]
    reply = server.chat("Hi")
    assert reply.status == 503
    assert "TypeError" in reply.json["error"]["message"]


class Life:
    """Tells when it begins and ends."""

    def __init__(self) -> None:
        self.stations: list[str] = []
        self.folder = Path()

    @hookimpl
    def startup(self, server: Server) -> None:
        self.stations.append("startup")
        self.folder = server.data_dir
        server.emit(Event("my_own", "info", f"At {server.url}."))

    @hookimpl
    def log_record(self, record: LogRecord) -> None:
        self.stations.append(record.kind)

    @hookimpl
    async def shutdown(self) -> None:
        self.stations.append("shutdown")


def test_a_server_is_started_and_ended_with_all_its_hooks(jackfield_tokenizer: Path) -> None:
    life = Life()
    with serving(jackfield_tokenizer, ("life", life)) as server:
        assert server.plugin("life") is life
        assert server.event("my_own").title == f"At {server.url}."
        server.chat("Hi")
    assert life.stations == ["startup", "received", "backend", "first_token", "completed", "shutdown"]


def test_data_is_kept_with_the_test(jackfield_server: StartServer, tmp_path: Path) -> None:
    life = Life()
    jackfield_server(("life", life))
    assert tmp_path in life.folder.parents


def test_events_and_records_are_kept(jackfield_server: StartServer) -> None:
    server = jackfield_server()
    server.chat("Hi", headers={"X-Request-ID": "one"})
    assert server.record("completed").request.id == server.event("completed").request_id == "one"
    assert [record.kind for record in server.records] == ["received", "backend", "first_token", "completed"]
    assert "model_loaded" in [event.kind for event in server.events]


def test_those_of_one_request_are_told_apart(server: JackfieldServer) -> None:
    replies = [server.chat("Hi") for _ in range(3)]
    for reply in replies:
        assert server.record("completed", reply.request_id).request.id == reply.request_id
        assert server.event("completed", reply.request_id).request_id == reply.request_id


def test_what_does_not_come_is_told(server: JackfieldServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from jackfield.testing import recorder
    from jackfield.testing import server as home

    for module in (recorder, home):
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="'slow' did not come"):
        server.event("slow")
    with pytest.raises(AssertionError, match="did not come true"):
        server.wait_until(lambda: False)
    with pytest.raises(KeyError, match="nobody"):
        server.plugin("nobody")


def test_an_unknown_name_is_told(jackfield_server: StartServer) -> None:
    with pytest.raises(AssertionError, match="no plugin 'nobody' is installed"):
        jackfield_server("nobody")


def test_wrong_settings_are_told(jackfield_server: StartServer) -> None:
    with pytest.raises(ConfigurationError, match="hook_secons"):
        jackfield_server(hook_secons=1)
    with pytest.raises(ConfigurationError, match="has no settings"):
        jackfield_server(("life", Life()), settings={"life": {"long": True}})


class Wrong:
    """Fails at one hook."""

    @hookimpl
    def transform_request(self, body: JsonObject) -> JsonObject | None:
        raise RuntimeError("never")


class WrongAtStart:
    """Cannot start."""

    @hookimpl
    def startup(self) -> None:
        raise RuntimeError("not today")


class WrongGuard(WrongAtStart):
    """Cannot start, and without it everybody would get in."""

    @hookimpl
    def authenticate(self) -> None:
        return None


@pytest.mark.parametrize(("make", "error"), [(WrongAtStart, AssertionError), (WrongGuard, ConfigurationError)])
def test_a_plugin_that_cannot_start_is_told(
    jackfield_server: StartServer, make: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error, match="not today"):
        jackfield_server(("wrong", make()))


def test_failures_can_be_looked_at(jackfield_server: StartServer) -> None:
    server = jackfield_server(("wrong", Wrong()), may_fail=True, max_plugin_failures=2)
    for _ in range(3):
        assert server.chat("Hi").status == 200
    assert server.event("plugin_disabled").data["plugin"] == "wrong"
    (report,) = (plugin for plugin in server.get("/v1/plugins").json["data"] if plugin["name"] == "wrong")
    assert (report["state"], report["failures"]) == ("disabled", 2)
    with pytest.raises(AssertionError, match="transform_request: RuntimeError in test_testing_plugin"):
        server.refuse_failures()
