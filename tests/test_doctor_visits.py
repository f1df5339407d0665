"""What `jackfield doctor` says of servers of other kinds, and of addresses and keys that are none."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from jackfield.cli.main import main
from jackfield.doctor import real, server
from jackfield.doctor.finding import Finding, careful
from jackfield.doctor.visit import Json, Visit
from jackfield.errors import ConfigurationError

Answer = tuple[int, Any, dict[str, str]]
Answers = Callable[[str, Json], Answer]
Visiting = Callable[[Answers], Visit]

NOT_FOUND: Answer = (404, {"detail": "Not Found"}, {})
MODELS: Answer = (200, {"object": "list", "data": [{"id": "m", "object": "model"}]}, {})
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": None}


@pytest.fixture
def visiting() -> Iterator[Visiting]:
    """Begins a visit to a server that answers as it is told to."""
    ends: list[Callable[[], None]] = []

    def begin(answers: Answers) -> Visit:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    self.answer(json.loads(content))
                except ValueError:
                    self.answer({})

            def answer(self, asked: Json) -> None:
                status, body, headers = answers(self.path, asked)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name there
                pass

        other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        visit = Visit(f"http://127.0.0.1:{other.server_port}", model="m")
        ends.extend([thread.join, other.server_close, other.shutdown, visit.close])
        return visit

    yield begin
    for end in reversed(ends):
        end()


def same(status: int, body: Any, **headers: str) -> Answers:
    return lambda path, asked: (status, body, headers)


def vllm(path: str, asked: Json) -> Answer:
    """Speaks OpenAI's API, and nothing of Jackfield's own."""
    if path == "/v1/models":
        return MODELS
    if path == "/v1/chat/completions":
        message = {"role": "assistant", "content": "Hello"}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}, {}
    if path != "/v1/completions":
        return NOT_FOUND
    if "prompt" not in asked:
        return 400, {"error": {"message": "No prompt."}}, {}
    choice = {"index": 0, "text": " there was", "finish_reason": "length"}
    if not asked.get("stream"):
        return 200, {"choices": [choice], "usage": USAGE}, {}
    events = ({"choices": [choice]}, {"choices": [], "usage": USAGE})
    return 200, b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), {}


def found(visit: Visit, check: str) -> Finding:
    checks = dict((*server.FIRST, *server.CHECKS))
    return list(careful(check, lambda: checks[check](visit)))[-1]


REFUSAL = {"error": {"message": "Nobody here is called that.", "suggestions": ["Add it to allowed_hosts."]}}


@pytest.mark.parametrize(
    ("answers", "told", "advice"),
    [
        (same(200, b"<html>Hello</html>"), "is something else: /v1/models lists no models", "jackfield serve"),
        (same(200, {"data": None}), "is something else: /v1/models lists no models", "jackfield serve"),
        (same(200, {"data": []}), "has no models", "serve one"),
        (same(421, REFUSAL), "answered 421: Nobody here is called that.", "Add it to allowed_hosts."),
        (same(404, {"detail": "Not Found"}), "with 404 (Not Found)", "jackfield serve"),
        (same(308, b"", Location="https://example.com/"), "on to https://example.com/", "Give the address"),
    ],
    ids=["HTML", "null", "no models", "refused", "not found", "redirect"],
)
def test_what_is_no_server_of_models(visiting: Visiting, answers: Answers, told: str, advice: str) -> None:
    (finding,) = server.server_checks(visiting(answers))
    assert (finding.check, finding.verdict) == ("server", "failure")
    assert told in finding.told
    assert advice in finding.advice[0]


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        ("server", "ok"),
        ("model", "ok"),
        ("ready", "skipped"),
        ("tokens", "skipped"),
        ("answers", "ok"),
        ("JSON schema", "failure"),
        ("tool calls", "failure"),
        ("prefix cache", "warning"),
        ("errors", "failure"),
    ],
)
def test_a_server_of_another_kind(visiting: Visiting, check: str, verdict: str) -> None:
    finding = found(visiting(vllm), check)
    assert finding.verdict == verdict, finding.told
    assert "Error" not in finding.told


def test_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_SPEAK", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visit = Visit(f"http://127.0.0.1:{listener.getsockname()[1]}")
        (finding,) = server.server_checks(visit)
        visit.close()
    assert (finding.verdict, "/health gave no answer: timed out." in finding.told) == ("failure", True), finding.told


def test_a_stream_that_is_cut_off(visiting: Visiting) -> None:
    def answers(path: str, asked: Json) -> Answer:
        return (200, b"data: {}\n\n", {"Transfer-Encoding": "chunked"}) if asked.get("stream") else vllm(path, asked)

    finding = found(visiting(answers), "streams")
    assert (finding.verdict, "gave no answer" in finding.told) == ("failure", True), finding.told
    assert finding.advice


def thinking(effort: int) -> Answers:
    """A model that thinks unless it is told not to, by a server that answers so to the field."""

    def answers(path: str, asked: Json) -> Answer:
        if path != "/v1/chat/completions" or ("reasoning_effort" in asked and effort == 200):
            return vllm(path, asked)
        if "reasoning_effort" in asked:
            return effort, {"error": {"message": "No such field."}}, {}
        message = {"role": "assistant", "content": None, "reasoning_content": "The user says"}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": USAGE}, {}

    return answers


@pytest.mark.parametrize(("effort", "text"), [(200, "Hello"), (400, "The user says"), (422, "The user says")])
def test_a_model_that_thinks(visiting: Visiting, effort: int, text: str) -> None:
    visit = visiting(thinking(effort))
    finding = found(visit, "answers")
    assert (finding.verdict, text in finding.told) == ("ok", True), finding.told
    assert [one.verdict for one in real._kinds(visit)] == ["ok"] * len(real.PROMPTS)
    # One that could answer has no such excuse.
    wanted = "failure" if effort == 200 else "skipped"
    assert [found(visit, check).verdict for check in ("JSON schema", "tool calls")] == [wanted] * 2


def short(path: str, asked: Json) -> Answer:
    """A model with a context of 512 tokens, of which a story takes 20, that fails at code."""
    if path == "/v1/models/m":
        return 200, {"id": "m", "context_length": 512}, {}
    if path == "/v1/completions":
        return 200, {"choices": [{"text": "."}], "usage": {"prompt_tokens": 20}}, {}
    text = asked["messages"][0]["content"]
    if text.count(server.STORY) > 20 or "Python" in text:
        return 400, {"error": {"message": "No.", "suggestions": ["Ask something else."]}}, {}
    return vllm(path, asked)


def untold(path: str, asked: Json) -> Answer:
    """The same, of which nobody knows the context."""
    return NOT_FOUND if path == "/v1/models/m" else short(path, asked)


@pytest.mark.parametrize("answers", [short, untold])
def test_prompts_fit_and_fail_one_by_one(visiting: Visiting, answers: Answers) -> None:
    said = {one.check: one.verdict for one in real._kinds(visiting(answers))}
    assert said == {f"prompt: {kind}": "failure" if kind == "code" else "ok" for kind in real.PROMPTS}


def test_a_prompt_is_too_long_only_where_the_context_is_known(visiting: Visiting) -> None:
    def answers(path: str, asked: Json) -> Answer:
        refused = (400, {"error": {"message": "No."}}, {})
        if asked.get("model") == "no-such-model":
            return 404, refused[1], {}
        return refused if "no_such_field" in asked else vllm(path, asked)

    finding = found(visiting(answers), "errors")
    assert finding.verdict == "ok", finding.told


def test_memory_of_a_model_that_others_answer(visiting: Visiting) -> None:
    (finding,) = real._memory(visiting(same(200, {"id": "m", "jackfield": {"capabilities": []}})))
    assert (finding.verdict, "others answer it" in finding.told) == ("skipped", True)


@pytest.mark.parametrize(
    ("status", "told"), [(200, "tell nothing of this model"), (404, "has no metrics"), (403, "the scope 'metrics'")]
)
def test_metrics_that_are_not_there(visiting: Visiting, status: int, told: str) -> None:
    finding = found(visiting(same(status, b"# none\n")), "hanging up")
    assert (finding.verdict, told in finding.told) == ("skipped", True), finding.told


@pytest.mark.parametrize("url", ["http://127.0.0.1:80a", "http://[::1", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    result = CliRunner().invoke(main, ["doctor", url])
    assert result.exit_code == 1
    assert f"{url} is no address of a server." in result.stderr
    assert "http://127.0.0.1:8080" in result.stderr


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_cannot_be_sent_is_not_quoted(key: str) -> None:
    with pytest.raises(ConfigurationError, match="The key has characters that cannot be sent") as caught:
        Visit("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


def test_what_surrounds_a_key_is_not_sent() -> None:
    visit = Visit("http://127.0.0.1:1", "abc\n")
    visit.close()
    assert visit.key == "abc"


def test_the_address_of_the_settings_in_brackets() -> None:
    result = CliRunner().invoke(
        main, ["doctor", "--real", "--json"], env={"JACKFIELD_HOST": "::1", "JACKFIELD_PORT": "1"}
    )
    assert json.loads(result.stdout)["url"] == "http://[::1]:1"
