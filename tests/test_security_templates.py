"""Chat templates come with models, and are code that nobody here has read."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jackfield.errors import InvalidRequestError, JackfieldError, TemplateLimitError
from jackfield.models import tokenizer as tokenizer_module
from jackfield.models.time_limit import OvertimeError, time_limit
from jackfield.models.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def with_template(tiny_model: Path, tmp_path: Path) -> Callable[[str], Tokenizer]:
    def make(template: str) -> Tokenizer:
        for file in tiny_model.iterdir():
            if file.name != "model.safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
        return Tokenizer(tmp_path)

    return make


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch escaped') }}",
        "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
        "{{ ().__class__.__base__.__subclasses__()[0]() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_it_does_not_leave_its_sandbox(with_template: Callable[[str], Tokenizer], template: str) -> None:
    try:
        told = with_template(template).render(ASKED, [], {})
    except InvalidRequestError:
        return
    assert told == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = namespace(n=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set x.n = x.n + 1 %}"
        "{% endfor %}{% endfor %}",
        "{% macro a() %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endmacro %}"
        "{{ a() }}",
    ],
)
def test_it_does_not_run_for_ever(
    with_template: Callable[[str], Tokenizer], template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_SECONDS", 0.3)
    tokenizer = with_template(template)
    with pytest.raises(TemplateLimitError) as caught:
        tokenizer.render(ASKED, [], {})
    assert caught.value.suggestions
    # And the thread is as good as before.
    assert sum(range(1000)) == 499500


@pytest.mark.parametrize("template", ["{% for a in range(10 ** 9) %}{% endfor %}", "{{ 1 / 0 }}", "{% include 'x' %}"])
def test_what_it_may_not_do_is_an_error(with_template: Callable[[str], Tokenizer], template: str) -> None:
    with pytest.raises(JackfieldError):
        with_template(template).render(ASKED, [], {})


def test_what_ends_in_time_is_not_disturbed() -> None:
    for _ in range(200):
        with time_limit(0.02):
            pass
    time.sleep(0.05)


def test_what_ends_just_then_is_not_hit_later() -> None:
    """The exception is sent at about the moment when the work is done."""
    for seconds in (0.0008, 0.001, 0.0012) * 40:
        try:
            with time_limit(0.001):
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    pass
        except OvertimeError:
            pass
    time.sleep(0.05)


def test_other_threads_go_on() -> None:
    done = threading.Event()
    other = threading.Thread(target=lambda: (time.sleep(0.3), done.set()))
    other.start()
    with pytest.raises(OvertimeError), time_limit(0.05):
        while True:
            pass
    other.join(10)
    assert done.is_set()
