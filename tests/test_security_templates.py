"""Chat templates come with models, and are code that nobody here has read."""

import marshal
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from jackfield.errors import InvalidRequestError, ModelLoadError, TemplateLimitError
from jackfield.models import template_process, template_program
from jackfield.models import tokenizer as tokenizer_module
from jackfield.models.template_process import TemplateExhaustedError, TemplateProcess, TemplateRefusedError
from jackfield.models.tokenizer import Tokenizer
from jackfield.testing.tokenizer import write
from scripted_engine import staged

ASKED = [{"role": "user", "content": "Hi"}]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    write(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess()


Render = Callable[[str], str]


@pytest.fixture
def render(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Render]:
    """Renders a template, with little time. Whatever it was, the next conversation is rendered."""

    def rendered(template: str) -> str:
        monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
        monkeypatch.setattr(tokenizer_module, "TEMPLATE_SECONDS", 0.2)
        return tokenizer.render(ASKED, [], {})

    yield rendered
    monkeypatch.undo()
    assert tokenizer.render(ASKED, [], {}) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


# What takes all time or memory

DOUBLED = "{% set ns = namespace(x='ab', y=['ab']) %}{% for a in range(40) %}{% set ns.Z = ns.Z OP ns.Z %}{% endfor %}"
SHARED = (
    "{% set ns = namespace(x=[], y=[]) %}{% for a in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
LONG = "{% set big = 'ab' * 10**7 %}"
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that counts": "{% set x = namespace(n=0) %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% set x.n = x.n + 1 %}{% endfor %}{% endfor %}",
    "a macro": "{% macro a() %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endmacro %}{{ a() }}",
    "a loop that writes": "{% for a in range(99999) %}{% for b in range(99999) %}xxx{% endfor %}{% endfor %}",
    "a power": "{% set x = 7**(10**8) %}",
    "a string": "{{ 'a' * 10**10 }}",
    "a list": "{% set x = [0] * 10**9 %}",
    "a doubled string": DOUBLED.replace("Z", "x").replace("OP", "~"),
    "a doubled list": DOUBLED.replace("Z", "y").replace("OP", "+"),
    "a width": "{{ '%04000000000d' % 1 }}",
    "a width of a filter": "{{ '%.2000000000f'|format(1.5) }}",
    "a width in braces": "{{ '{:>8000000000}'.format(1) }}",
    "a method": "{{ 'x'.center(8000000000) }}",
    "a filter": "{{ 'x'|center(8000000000) }}",
    "many words": "{{ lipsum(n=10**9) }}",
    "replaced": LONG + "{{ big.replace('', big) }}",
    "indented": "{{ ('a\n' * 10**6)|indent(10**6, true, true) }}",
    "sought from behind": "{{ ('a' * 10**7).rfind('ab' + 'a' * 10**6) }}",
    "summed": "{{ ([[1] * 10**4] * 10**5)|sum(start=[])|length }}",
    "shared and shown": SHARED + "{{ ns.x }}",
    "shared, as JSON": SHARED + "{{ ns.x|tojson }}",
    "shared and compared": SHARED + "{{ ns.x == ns.y }}",
    "a long answer": LONG + "{{ big }}",
    "a long error": LONG + "{{ raise_exception(big * 100) }}",
    "folded when it is compiled": "{{ ('a' * 10**5)|center(10**10) }}",
    "long to compile": "{% if 1 %}" + "{{ 1 + 1 }}{% set a = b %}" * 30_000 + "{% endif %}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_what_takes_all_time_or_memory_is_ended(render: Render, template: str) -> None:
    with pytest.raises(TemplateLimitError) as caught:
        render(template)
    assert caught.value.suggestions


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ raise_exception('x' * 10**6) }}",
        "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{% endfor %}",
    ],
    ids=lambda template: template[:20],
)
def test_what_it_may_not_do_is_an_error(render: Render, template: str) -> None:
    with pytest.raises(InvalidRequestError, match="refuses this conversation") as caught:
        render(template)
    assert len(caught.value.message) < 3000


def test_a_template_as_long_as_a_book_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("x" * 1_000_001)
    with pytest.raises(ModelLoadError, match="1000001 characters"):
        Tokenizer(tmp_path)


def test_others_are_answered_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power is one step, during which nothing else could run in the same process."""
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_SECONDS", 1.0)
    with staged(folder) as stage:
        monkeypatch.setattr(stage.tokenizer._tokenizer, "chat_template", ENDLESS["a power"])
        asked = threading.Event()
        answers = []

        def ask() -> None:
            asked.set()
            body = {"model": "actor", "messages": ASKED}
            answers.append(httpx2.post(f"{stage.url}/v1/chat/completions", json=body, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        asked.wait()
        meanwhile = 0
        while asking.is_alive():
            assert httpx2.get(f"{stage.url}/health", timeout=60).status_code == 200
            meanwhile += asking.is_alive()
        asking.join()
    assert answers[0].status_code == 500
    assert answers[0].json()["error"]["code"] == "template_limit"
    assert meanwhile > 3


# What it must not reach


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch FILE') }}",
        "{{ lipsum.__globals__.os.system('touch FILE') }}",
        "{{ dict.__class__.__init__.__globals__ }}",
        "{{ namespace(__init__=1).__init__.__globals__ }}",
        "{{ self.__init__.__globals__.__builtins__.open('FILE', 'w').close() }}",
        "{{ ''['__class__']['__base__'] }}{{ ''|attr('__class__')|attr('__base__') }}",
        "{{ '{0.__class__.__base__}'.format('') }}",
        "{{ ().__class__.__base__.__subclasses__()[0]() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_it_does_not_leave_its_sandbox(render: Render, template: str, tmp_path: Path) -> None:
    file = tmp_path / "escaped"
    with suppress(InvalidRequestError):
        assert render(template.replace("FILE", str(file))) == ""
    assert not file.exists()


def test_without_its_sandbox_it_would_reach_nothing_either(tmp_path: Path) -> None:
    """What the process gives up is gone for Python too."""
    attempts = f"""
import os, socket, subprocess
from jackfield.models.template_program import confine
confine()
for attempt in (
    lambda: open({str(tmp_path / "escaped")!r}, "w"),
    lambda: open("/etc/passwd"),
    lambda: socket.socket(),
    lambda: subprocess.run(["touch", {str(tmp_path / "escaped")!r}]),
    lambda: os.listdir("/"),
):
    try:
        attempt()
    except OSError as error:
        os.write(1, b"no ")
"""
    done = subprocess.run([sys.executable, "-c", attempts], capture_output=True, check=False)
    assert done.stdout == b"no " * 5, done.stderr
    assert not (tmp_path / "escaped").exists()


@LINUX
def test_its_process_has_limits_and_no_secrets(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JACKFIELD_API_KEY", "a key of sixteen characters")
    fresh = TemplateProcess()
    assert fresh.render("{{ a }}", {"a": 1}, 10) == "1"
    proc = Path("/proc", str(pid(fresh)))
    limits = {line[:26].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()[1:]}
    for name in ("Max open files", "Max file size", "Max processes", "Max core file size"):
        assert limits[name] == "0", name
    assert int(limits["Max cpu time"]) <= 13
    assert 500 << 20 < int(limits["Max address space"]) < 600 << 20
    assert (proc / "oom_score_adj").read_text() == "1000\n"
    assert b"KEY" not in (proc / "environ").read_bytes()
    assert os.getpgid(pid(fresh)) != os.getpgid(0), "Ctrl-C would end it first"


# Its process


def pid(process: TemplateProcess) -> int:
    assert process._child is not None
    return process._child._process.pid


def gone(number: int) -> bool:
    """Whether there is no such process soon."""
    for _ in range(200):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_one_process_renders_many(process: TemplateProcess) -> None:
    process.render("", {}, 10)
    first = pid(process)
    with pytest.raises(TemplateRefusedError, match="no such"):
        process.render("{{ raise_exception('no such') }}", {}, 10)
    assert process.render("{{ a }}", {"a": [True, None, 1.5, "\ud800 \0 \U0001f600"]}, 10).startswith(
        "[True, None, 1.5"
    )
    assert process.render("{{ a }}", {"a": "\ud800 \0 \U0001f600 \u6f22"}, 10) == "\ud800 \0 \U0001f600 \u6f22"
    assert pid(process) == first


def test_one_that_dies_is_replaced(process: TemplateProcess) -> None:
    """Python can be brought down by deep values, and the system may end what takes too much memory."""
    process.render("", {}, 10)
    os.kill(pid(process), 9)
    process._child._process.wait()  # type: ignore[union-attr]
    assert process.render("a", {}, 10) == "a"
    killing = threading.Timer(0.2, os.kill, (pid(process), 11))
    killing.start()
    with pytest.raises(TemplateExhaustedError):
        process.render(ENDLESS["loops"], {}, 30)
    assert process.render("b", {}, 10) == "b"


def test_what_is_broken_off_answers_no_other_conversation(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.render("", {}, 10)

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(process._child, "_answer", out_of_memory)
        process.render("somebody's", {}, 10)
    assert process.render("mine", {}, 10) == "mine"


def test_a_service_manager_does_not_end_it_before_the_server(process: TemplateProcess) -> None:
    process.render("", {}, 10)
    first = pid(process)
    os.kill(first, signal.SIGTERM)
    assert process.render("a", {}, 10) == "a"
    assert pid(process) == first


def test_it_ends_with_its_model() -> None:
    process = TemplateProcess()
    process.render("", {}, 10)
    number = pid(process)
    del process
    assert gone(number)


def test_it_ends_with_the_server() -> None:
    """Which may be killed."""
    program = """
import os
from jackfield.models.template_process import TemplateProcess
process = TemplateProcess()
process.render("", {}, 10)
print(process._child._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert gone(int(done.stdout))


def test_others_wait_for_it_as_long_as_it_may_take(process: TemplateProcess) -> None:
    process.render("", {}, 10)

    def endless() -> None:
        with suppress(TemplateExhaustedError):
            process.render(ENDLESS["a power"], {}, 0.5)

    waiting = threading.Thread(target=endless)
    waiting.start()
    while not process._lock.locked():
        time.sleep(0.01)
    with pytest.raises(TemplateExhaustedError):
        process.render("a", {}, 0.1)
    assert process.render("a", {}, 30) == "a"
    waiting.join()


@pytest.mark.parametrize(("python", "why"), [("/nowhere/python", "No such file"), ("/bin/false", "ended with 1")])
def test_one_that_does_not_start_is_an_error(python: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(ModelLoadError, match=why) as caught:
        TemplateProcess().render("", {}, 10)
    assert "ulimit" in caught.value.suggestions[0]


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not there")
def test_where_memory_has_no_limit_it_is_watched(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "WATCHES_MEMORY", True)
    assert process.render("a", {}, 10) == "a"
    monkeypatch.setattr(template_process, "memory_for", lambda length: 100 << 20)
    seen = []
    look = template_process.resident
    monkeypatch.setattr(template_process, "resident", lambda number: seen.append(look(number)) or seen[-1])
    with pytest.raises(TemplateExhaustedError):
        process.render("{% set n = 10**6 %}{% set x = 'a' * 200 * n %}" + ENDLESS["loops"], {}, 10)
    assert [size > 100 << 20 for size in seen].count(True) == 1


def test_without_ps_nothing_is_known_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert template_process.resident(os.getpid()) == 0


# Its program, in this process


def answered(template: str, **variables: object) -> tuple[bytes, str]:
    return template_program.answer(marshal.dumps((template, variables)))


def test_kinds_of_answers() -> None:
    features = (
        "{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=n.a)|tojson }}{{ dict.fromkeys('c').c }}"
    )
    assert answered(features) == (template_program.RENDERED, '2{"b": 2}None')
    assert answered("{% generation %}{{ a }}{% endgeneration %}{{ strftime_now('.') }}", a="x")[1] == "x."
    assert answered("{{ raise_exception('no') }}") == (template_program.REFUSED, "no")
    for private in ("{% set n = namespace(_a=1) %}", "{% set n = namespace() %}{% set n._a = 1 %}"):
        kind, reason = answered(private)
        assert (kind, "underscore" in reason) == (template_program.REFUSED, True)
    assert answered("{{ 'x' * 17 * 2 ** 20 }}") == (template_program.EXHAUSTED, "")
    # What was asked is long itself.
    assert answered("{{ a * 8 }}", a="x" * 3 * 2**20)[0] == template_program.RENDERED
    assert answered("{{ 'x' * 2 ** 62 }}")[0] == template_program.EXHAUSTED


def test_each_request_sets_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    monkeypatch.setattr(template_program, "_limit", lambda which, soft: limits.update({which: soft}))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(template_program.REQUEST.pack(5, 3.0) + b"first" + template_program.REQUEST.pack(0, 3.0))
        received = template_program.requests(theirs)
        assert next(received) == b"first"
        assert limits[resource.RLIMIT_AS] == (512 << 20) + 5 * 32
        assert limits[resource.RLIMIT_CPU] > 4
        assert list(received) == [b""], "and then the server is gone"


# What is long, and fine


def test_long_conversations_are_rendered(tokenizer: Tokenizer) -> None:
    many = [{"role": "user", "content": f"message {n}"} for n in range(10_000)]
    assert tokenizer.render(many, [], {}).count("<|im_end|>") == 10_000
    text = "\U0001f600" + "word " * 2_000_000
    assert text in tokenizer.render([{"role": "user", "content": text}], [], {})


def test_deep_values_are_refused(tokenizer: Tokenizer) -> None:
    deep: list[object] = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="deeply nested"):
        tokenizer.render(ASKED, [], {"deep": deep})
