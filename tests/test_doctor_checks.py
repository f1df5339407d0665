"""What `jackfield doctor` finds of machines, models and running servers; each check also of something broken."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jackfield import settings as configuration
from jackfield.api import sse
from jackfield.doctor import fallback, machine, real, server, setup
from jackfield.doctor.finding import Finding, careful, failed, ok
from jackfield.doctor.front import front
from jackfield.doctor.model import model_checks
from jackfield.doctor.visit import Json, Streamed, Visit
from jackfield.errors import JackfieldError
from jackfield.hooks.discovery import given
from jackfield.models.device import Device
from jackfield.security.key import Key, digest
from jackfield.security.key_file import change
from jackfield.testing import serving
from serving import Server


def doctor(*arguments: str, status: int = 0) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "jackfield", "doctor", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "JACKFIELD_PLUGINS": "none"},
    )
    assert result.returncode == status, result.stdout + result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def verdicts(findings: list[Any]) -> dict[str, str]:
    return {one["check"]: one["verdict"] for one in findings}


@pytest.fixture(scope="module")
def visit(tiny_server: Server) -> Iterator[Visit]:
    visit = Visit(tiny_server.url, model=tiny_server.model)
    yield visit
    visit.close()


# --- A server --------------------------------------------------------------------------------------------------------


def test_a_server_that_is_in_order(tiny_server: Server) -> None:
    found = doctor(tiny_server.api)
    assert found["url"] == tiny_server.url
    assert found["model"] == tiny_server.model
    said = verdicts(found["checks"])
    assert list(said) == ["server", "model", *(name for name, _ in server.CHECKS), "speed"]
    assert "failure" not in said.values(), found["checks"]
    speed = found["checks"][-1]["figures"]
    assert speed["tokens_per_second"] > 0
    assert speed["possible_tokens_per_second"] > 0


def test_at_length(tiny_server: Server) -> None:
    found = doctor("--real", tiny_server.url)
    said = verdicts(found["checks"])
    assert "failure" not in said.values(), found["checks"]
    assert {"loading", "memory", "embeddings", "fill in the middle", "prompt: code"} <= said.keys()
    wanted = ("memory", "recovery", "fallback", "circuit breaker", "broken streams")
    assert [said[name] for name in wanted] == ["ok"] * len(wanted)


def test_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        (finding,) = doctor(f"http://{place}", status=4)["checks"]
        assert doctor(place, status=4)["url"] == f"http://{place}"
    assert finding["check"] == "server"
    assert "cannot be reached" in finding["told"]
    assert finding["advice"]


def test_what_is_no_such_server(tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        found = doctor(f"http://127.0.0.1:{other.server_port}", status=4)["checks"]
        other.shutdown()
        thread.join()
    assert [(one["check"], one["verdict"]) for one in found] == [("server", "failure")]
    assert "/v1/models with 404" in found[0]["told"]
    assert found[0]["advice"]


def test_a_model_that_cannot_answer_is_told_once(jackfield_tokenizer: Path) -> None:
    upstreams, models = {"gone": {"url": "http://127.0.0.1:1/v1"}}, {"far": {"route": ["gone"]}}
    with serving(jackfield_tokenizer, upstreams=upstreams, models=models) as started:
        found = doctor(started.url, "--ask", "far", status=4)["checks"]
    assert [(one["check"], one["verdict"]) for one in found] == [("server", "ok"), ("model", "failure")]
    assert "gone" in found[1]["told"]
    assert found[1]["advice"]


def test_nothing_is_said_of_programs_that_it_does_not_need() -> None:
    command = [sys.executable, "-m", "jackfield", "doctor", "http://127.0.0.1:1"]
    # mlx-lm, which these tests have imported, keeps transformers from speaking.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (4, "")


def test_a_model_that_is_not_there(tiny_server: Server) -> None:
    visit = Visit(tiny_server.url, model="gpt-5")
    found = list(server.server_checks(visit))
    visit.close()
    assert [(one.check, one.verdict) for one in found] == [("server", "ok"), ("model", "failure")]
    assert found[-1].advice == (f"Take one of: {tiny_server.model}.",)


class Faulty(Visit):
    """A visit to a server with a fault."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit.url, model=visit.model)


class IgnoresStop(Faulty):
    def completion(self, text: str, **fields: Any) -> Json:
        fields.pop("stop", None)
        return super().completion(text, **fields)


class StreamsAtOnce(Faulty):
    def streamed(self, text: str, **fields: Any) -> Streamed:
        answer = super().streamed(text, **fields)
        answer.pieces = 1
        return answer


class StreamsSomethingElse(Faulty):
    def streamed(self, text: str, **fields: Any) -> Streamed:
        answer = super().streamed(text, **fields)
        answer.text += "!"
        return answer


class LosesText(Faulty):
    def asked(self, path: str, **fields: Any) -> Json:
        document = super().asked(path, **fields)
        return {**document, "prompt": document["prompt"].strip()} if path == "/v1/detokenize" else document


class IgnoresFormats(Faulty):
    def chat(self, text: str, **fields: Any) -> Json:
        for name in ("response_format", "tools", "tool_choice"):
            fields.pop(name, None)
        return super().chat(text, **fields)


class CountsWrongly(Faulty):
    def chat(self, text: str, **fields: Any) -> Json:
        document = super().chat(text, **fields)
        document["usage"]["total_tokens"] += 1
        return document


class Leaks(Faulty):
    def chat(self, text: str, **fields: Any) -> Json:
        document = super().chat(text, **fields)
        document["choices"][0]["message"]["content"] += "<|im_end|>"
        return document


class CachesNothing(Faulty):
    def streamed(self, text: str, **fields: Any) -> Streamed:
        answer = super().streamed(text, **fields)
        answer.usage.pop("prompt_tokens_details", None)
        return answer


class TakesAnything(Faulty):
    def post(self, path: str, body: Json | bytes) -> Any:
        return super().post(path, {"model": self.model, "prompt": "Hi", "max_tokens": 1})


class NeverStops(Faulty):
    def series(self, name: str) -> float | None:
        return 1.0


class AnswersBy(Faulty):
    """Each time another text."""

    count = 0

    def completion(self, text: str, **fields: Any) -> Json:
        self.count += 1
        document = super().completion(text, **fields)
        document["choices"][0]["text"] += str(self.count)
        return document


@pytest.mark.parametrize(
    ("faulty", "check", "verdict"),
    [
        (IgnoresStop, "stop strings", "failure"),
        (StreamsAtOnce, "streams", "failure"),
        (StreamsSomethingElse, "streams", "failure"),
        (LosesText, "tokens", "failure"),
        (IgnoresFormats, "JSON schema", "failure"),
        (IgnoresFormats, "tool calls", "failure"),
        (CountsWrongly, "answers", "failure"),
        (Leaks, "answers", "failure"),
        (CachesNothing, "prefix cache", "warning"),
        (TakesAnything, "errors", "failure"),
        (NeverStops, "hanging up", "warning"),
        (AnswersBy, "company", "warning"),
    ],
)
def test_a_server_with_a_fault(
    visit: Visit, faulty: Callable[[Visit], Visit], check: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_STOP", 0.3)
    looked = dict(server.CHECKS)[check]
    ill = faulty(visit)
    (finding,) = careful(check, lambda: looked(ill))
    ill.close()
    assert (finding.check, finding.verdict) == (check, verdict), finding.told
    (finding,) = careful(check, lambda: looked(visit))
    assert finding.verdict == "ok", finding.told


def test_a_slow_server(visit: Visit) -> None:
    (finding,) = server._speed(visit, bandwidth=1e15)
    assert finding.verdict == "warning"
    (finding,) = server._speed(visit, bandwidth=None)
    assert finding.verdict == "ok"


class Keeps(Faulty):
    """A server that does not give memory back."""

    asked_before = False

    def series(self, name: str) -> float | None:
        before, self.asked_before = self.asked_before, True
        held = super().series(name)
        return held if held is None or not before else 3 * held


def test_memory_that_is_kept(visit: Visit) -> None:
    ill = Keeps(visit)
    assert [one.verdict for one in real._memory(ill)] == ["ok", "failure"]
    ill.close()


class TakesEmptyConversations(Faulty):
    def post(self, path: str, body: Json | bytes) -> Any:
        asked = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 1, "max_tokens": 1}
        return super().post(path, {**body, **asked} if isinstance(body, dict) and not body.get("messages", 1) else body)


@pytest.mark.parametrize(
    ("faulty", "verdict"), [(TakesEmptyConversations, "failure"), (AnswersBy, "failure"), (NeverStops, "warning")]
)
def test_a_server_that_does_not_recover(
    visit: Visit, faulty: Callable[[Visit], Visit], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_STOP", 0.3)
    monkeypatch.setattr(real, "TIMES", 2)
    ill = faulty(visit)
    (finding,) = real._recovery(ill)
    ill.close()
    assert (finding.check, finding.verdict) == ("recovery", verdict)


def test_fallback_that_does_not_work(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's own server runs in this process, so that it can be broken."""
    monkeypatch.setattr("jackfield.api.routing._is_worth_another_try", lambda error: False)
    (finding,) = careful("fallback", lambda: fallback.fallback_checks(visit))
    assert (finding.verdict, "500" in finding.told or "502" in finding.told) == ("failure", True), finding.told
    monkeypatch.undo()
    monkeypatch.setattr("jackfield.backends.breaker.Breaker.ended", lambda self, attempt, *, well: None)
    monkeypatch.setattr("jackfield.api.sse.deltas", told_nothing(sse.deltas))
    found = {one.check: one.verdict for one in careful("fallback", lambda: fallback.fallback_checks(visit))}
    assert found == {"fallback": "ok", "circuit breaker": "failure", "broken streams": "failure"}


def test_the_circuit_breaker_is_tried_by_itself(visit: Visit) -> None:
    with front(visit) as own:
        finding = fallback._leaves_alone(own)
    assert finding.verdict == "ok", finding.told


def told_nothing(deltas: Callable[..., Any]) -> Callable[..., Any]:
    async def without_errors(answer: Any) -> AsyncIterator[Any]:
        async for part in deltas(answer):
            if not isinstance(part, JackfieldError):
                yield part

    return without_errors


def test_a_server_that_refuses_to_be_an_upstream(visit: Visit) -> None:
    ill = Visit(visit.url, model="gpt-5")
    (finding,) = careful("fallback", lambda: fallback.fallback_checks(ill))
    ill.close()
    assert (finding.verdict, "gpt-5" in finding.told) == ("failure", True)


# --- A model ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """The tiny model's files with something changed, as the doctor sees them."""

    def look(**changes: Any) -> dict[str, Finding]:
        for file in tiny_model.iterdir():
            if file.name != "model.safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        file = tmp_path / "tokenizer_config.json"
        settings = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
        return {one.check: one for one in careful("model", lambda: model_checks(tmp_path))}

    return look


def test_a_model_that_is_in_order(changed: Callable[..., dict[str, Finding]]) -> None:
    found = changed()
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(
        ("tokenizer", "end of answers", "special tokens", "chat template", "tool calls", "fill in the middle"), "ok"
    )
    assert "hermes" in found["tool calls"].told


def test_a_model_that_is_not_here() -> None:
    assert [one.verdict for one in model_checks(None)] == ["skipped"]


TURNS = "{{% for m in messages %}}{0}{{{{ m.role + m.content }}}}{1}{{% endfor %}}"
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
BEGINS = "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({"chat_template": None}, "chat template", "warning"),
        ({"chat_template": None}, "tool calls", "skipped"),
        ({"chat_template": "<|turn|>{{ messages[0].content }}" + BEGINS}, "special tokens", "warning"),
        ({"chat_template": TURNS.format("<|user|>", "<|im_end|>") + BEGINS}, "special tokens", "warning"),
        ({"chat_template": TURNS.format("<|im_start|>", "<|end|>") + BEGINS}, "special tokens", "failure"),
        ({"chat_template": TURNS.format("<|im_start|>", "<|im_end|>")}, "chat template", "warning"),
        ({"chat_template": "{{ messages[-1].content }}" + BEGINS}, "chat template", "failure"),
        ({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "chat template", "warning"),
        ({"chat_template": "{{ messages[0].content }}{# tool #}" + BEGINS}, "tool calls", "failure"),
        (
            {"chat_template": "{% if tools %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"},
            "tool calls",
            "failure",
        ),
        ({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}" + BEGINS}, "tool calls", "warning"),
    ],
    ids=str,
)
def test_a_template_with_a_fault(
    changed: Callable[..., dict[str, Finding]], changes: dict[str, Any], check: str, verdict: str
) -> None:
    assert changed(**changes)[check].verdict == verdict


def test_a_template_that_begins_answers_unasked(changed: Callable[..., dict[str, Finding]]) -> None:
    finding = changed(chat_template=MISTRAL)["chat template"]
    assert finding.verdict == "ok", finding.told


@pytest.mark.parametrize(("refused", "last"), [("system", "fill in the middle"), ("user", "model")])
def test_a_template_that_refuses_messages(changed: Callable[..., dict[str, Finding]], refused: str, last: str) -> None:
    """All else is looked at if it can do without them."""
    each = f"{{% if m.role == '{refused}' %}}{{{{ raise_exception('none of those') }}}}{{% endif %}}{{{{ m.content }}}}"
    found = changed(chat_template="{% for m in messages %}" + each + "{% endfor %}" + BEGINS)
    assert list(found)[-1] == last
    if refused == "system":
        assert found["chat template"].verdict == "warning"
        assert "refuses messages of the system" in found["chat template"].told
        assert found["special tokens"].verdict == "ok"
    else:
        assert "none of those" in found["model"].told


# --- A machine -------------------------------------------------------------------------------------------------------


def test_this_machine(device: Device, tmp_path: Path) -> None:
    found = {one.check: one for one in machine.machine_checks(device, tmp_path / "not" / "yet" / "there")}
    assert list(found) == ["device", "driver", "versions", "speed", "memory", "disk", "hub cache"]
    assert not failed(found.values())
    assert all(figure > 0 for figure in found["speed"].figures.values())  # type: ignore[operator]


def test_a_disk_that_cannot_be_written(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    for setting in ("JACKFIELD_CACHE_DIR", "HF_HOME"):
        finding = machine._disk("disk", tmp_path, "Models lie", setting)
        assert finding.verdict == "failure"
        assert setting in finding.advice[0]


def test_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        found = configuration.read({"port": other.getsockname()[1]}, environment={})
        said = {one.check: one for one in setup.setup_checks(found, given((), found.settings))}
    assert said["port"].verdict == "warning"
    assert "jackfield doctor http" in said["port"].advice[0]


def test_a_port_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    found = configuration.read({"host": "::1", "port": 8080}, environment={})

    def refuse(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(setup.socket, "socket", refuse)
    said = {one.check: one for one in setup.setup_checks(found, given((), found.settings))}
    assert (said["port"].verdict, "[::1]:8080 cannot be used" in said["port"].told) == ("failure", True)
    assert "[::1]:8080" in said["keys"].told


def test_a_plugin_that_does_not_work() -> None:
    found = configuration.read({"port": 0}, environment={})
    hooks = given([("fine", object()), ("broken", object())], found.settings)
    hooks.plugins[1].state = "failed"
    hooks.plugins[1].errors.append("it has no settings")
    said = {(one.verdict, one.told) for one in setup.setup_checks(found, hooks) if one.check == "plugins"}
    assert said == {("failure", "broken: it has no settings"), ("ok", "fine.")}


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("JACKFIELD_API_KEY", "JACKFIELD_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "keys.json"


def said_of_keys(**settings: Any) -> list[Finding]:
    found = configuration.read({"port": 0, **settings}, environment={})
    return [one for one in setup.setup_checks(found, given((), found.settings)) if one.check == "keys"]


def key(name: str, **fields: Any) -> Key:
    return Key.model_validate({"name": name, "sha256": digest(name), **fields})


OVER = {"expires": datetime(2020, 1, 1, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("keys", "mode", "verdicts", "told"),
    [
        (None, None, ["ok"], "only this machine reaches"),
        ([key("ada")], 0o600, ["ok"], "Requests need one; 1 are known"),
        ([key("ada")], 0o640, ["warning", "ok"], "Others may read"),
        ([key("ada")], 0o644, ["failure"], "can be read or changed by others"),
        ([key("ada"), key("bob", **OVER)], 0o600, ["warning", "ok"], "Expired: bob."),
        ([key("bob", **OVER)], 0o600, ["failure", "ok"], "so nobody is let in"),
        ([], 0o600, ["warning", "ok"], "has no keys"),
        ("{", 0o600, ["failure"], "is damaged"),
        ([key("ada"), key("ada")], 0o600, ["failure"], "two keys called 'ada'"),
    ],
    ids=["none", "one", "group", "all", "expired", "all expired", "empty", "damaged", "twice"],
)
def test_keys(keys_file: Path, keys: Any, mode: int | None, verdicts: list[str], told: str) -> None:
    if isinstance(keys, str):
        keys_file.write_text(keys)
    elif keys is not None:
        change(keys_file, lambda _: keys)
    if mode is not None:
        keys_file.chmod(mode)
    found = said_of_keys(keys_file=keys_file)
    assert [one.verdict for one in found] == verdicts
    assert told in found[0].told
    assert all(one.advice for one in found if one.verdict != "ok")


def test_an_address_that_others_reach_wants_keys(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside: dict[str, Any] = {"keys_file": keys_file, "host": "0.0.0.0"}
    (finding,) = said_of_keys(**outside)
    assert (finding.verdict, "Everybody who reaches" in finding.told) == ("failure", True)
    (finding,) = said_of_keys(**outside, open_to_network=True)
    assert finding.verdict == "warning"
    monkeypatch.setenv("JACKFIELD_API_KEY", "x" * 20)
    (finding,) = said_of_keys(**outside)
    assert finding.verdict == "ok"
    monkeypatch.setenv("JACKFIELD_API_KEY", "short")
    (finding,) = said_of_keys(**outside)
    assert (finding.verdict, "too short" in finding.told) == ("failure", True)


def test_what_a_check_raises_is_a_finding() -> None:
    def look() -> Iterator[Finding]:
        yield ok("one", "All is well.")
        raise KeyError("two")

    found = list(careful("look", look))
    assert [one.verdict for one in found] == ["ok", "failure"]
    assert "KeyError" in found[1].told


def test_doctor_of_a_folder_has_all_checks(tiny_model: Path) -> None:
    found = doctor(str(tiny_model))
    assert found["fits"] is True
    assert {"device", "versions", "disk", "configuration", "plugins", "keys", "tokenizer"} <= verdicts(
        found["checks"]
    ).keys()


def test_another_machine_is_not_looked_at(tiny_model: Path) -> None:
    assert doctor(str(tiny_model), "--memory", "64GB")["checks"] == []
