"""Templates are rendered as transformers renders them, which is what they are written for."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from jackfield.errors import InvalidRequestError, ModelLoadError
from jackfield.models.conversation import MARK
from jackfield.models.tokenizer import Tokenizer
from jackfield.testing.tokenizer import TEMPLATE, write
from test_reasoning import TEMPLATE as THINKING
from test_tool_prompts import MISTRAL, TEMPLATES
from vision_models import TEMPLATE as SEEING

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "Größe <b> & 'x'"}}}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "\u5929\u6c14", "parameters": PARAMETERS},
}
CALL = {
    "id": "abcdEF123",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo", "n": 1.5}},
}

QWEN3 = """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if message.role == 'user' and not (message.content.startswith('<tool>') and message.content.endswith('!')) %}
        {%- set ns.last = index %}{% break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set thoughts = '' %}
    {%- if message.reasoning_content is string %}{% set thoughts = message.reasoning_content %}
    {%- elif '</think>' in (message.content or '') %}
        {%- set thoughts = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if thoughts and loop.index0 > ns.last %}
        {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {%- generation %}{{ (message.content or '') | trim }}{% endgeneration %}
    {{- '<|im_end|>' }}
{% endfor %}
{{ eos_token }}{{ documents is none }}{{ add_generation_prompt }}{{ colour|default('no colour') }}
"""
"""What Qwen3's does, and the other things that are not plain Jinja."""

OLD_THOUGHTS = (
    "{% for m in messages %}{{ m.role }}{{ m.thinking }}{{ m.reasoning_content }}{{ m.reasoning }};{% endfor %}"
)

ALL = {
    **TEMPLATES,
    "plain": TEMPLATE,
    "thinking": THINKING,
    "seeing": SEEING,
    "mistral_calls": MISTRAL,
    "qwen3": QWEN3,
    "old_thoughts": OLD_THOUGHTS,
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "short": [{"role": "user", "content": "Hi"}],
    "long": [
        {"role": "system", "content": " Be brief. \n"},
        {"role": "user", "content": "\u6f22\u5b57 \U0001f600 <|im_end|>"},
        {"role": "assistant", "content": " Yes. ", "reasoning_content": "\nHm.\n", "tool_calls": None},
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "I think ", "thinking": "so"},
    ],
    "tools": [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdEF123", "content": "Wet."},
    ],
    "parts": [{"role": "user", "content": [{"type": "image", "image": ""}, {"type": "text", "text": " What? "}]}],
}

EXPRESSIONS = """
messages|tojson; tools|tojson(indent=2); {'b': 1, 'a': '<\u00e9>'}|tojson(ensure_ascii=true, sort_keys=true)
{'a': [1]}|tojson(separators=(',', ':')); dict(a=1, b=2); dict.fromkeys('ab', 1); dict([('a', 1)]).a
messages[0].items()|list; namespace(a=1, b=2).b; range(9)|list; range(1, 9, 3)|sum; cycler(1, 2).next(); joiner()()
lipsum(n=1, html=false)|length > 9; -3|abs; 'a'|attr('upper') is callable; range(5)|batch(2, 0)|list
'aB cD'|capitalize; 'a'|center(9); 'abc'|count; nothing|d('x'); ''|default('x', true); {'b': 1, 'A': 2}|dictsort
{'b': 1, 'A': 2}|dictsort(true, 'value', true); '<'|e; '<'|escape ~ '<'; 10**7|filesizeformat; 'abc'|first
'1.5'|float; 'x'|float(2); '<'|forceescape; '%s %05.1f%%'|format('a', 2.25); messages|groupby('role')|length
'a\\nb\\n\\nc'|indent(2, true); '7'|int; 'x'|int(3); 'ff'|int(0, 16); [1, 'a', none]|join('-')
messages|join(',', attribute='role'); [1, 2]|last; messages|length; 'abc'|list; 'ABC'|lower; {'a': 1}|items|list
messages|map(attribute='role')|list; ['a']|map('upper')|join; [3, 1]|min; [3, 1]|max; {'a': [1, 'b']}|pprint
[7]|random; [1, 0]|reject|list; messages|rejectattr('role', 'eq', 'user')|list; 'aaa'|replace('a', 'b', 2)
[1, 2]|reverse|list; 'abc'|reverse; 2.567|round(1); 2.5|round(0, 'ceil'); '<'|safe; [1, 2, 3]|select('odd')|list
messages|selectattr('role', 'in', ['user'])|list|length; range(5)|slice(2)|list; ['b', 'A']|sort
messages|sort(attribute='role')|length; 5|string; '<b>x</b>'|striptags; [1, 2]|sum(start=3); 'ab cd'|title; ' a '|trim
'xax'|trim('x'); 'abc def ghi jkl'|truncate(9); [1, 1, 2]|unique|list; 'a'|upper; 'a b&\u00e9'|urlencode
{'a': 1}|urlencode; 'www.a.com'|urlize; 'a b'|wordcount; 'abc def ghi'|wordwrap(5); {'a': '<', 'b': none}|xmlattr
'a' in 'abc'; 1 is odd; 2 is even; 4 is divisibleby 2; nothing is defined; nothing is undefined; 'upper' is filter
'odd' is test; none is none; true is boolean; 1 is true; 0 is false; 1 is integer; 1.0 is float; 'a' is lower
'A' is upper; 'a' is string; {} is mapping; 1 is number; [] is sequence; 1 is sameas 1; [] is iterable
'<'|safe is escaped; 1 is in [1]; 1 is eq 1; 1 is lt 2; range is callable; 'a-b'.split('-'); 'a b c'.rsplit(' ', 1)
'Ab'.swapcase(); 'ab'.encode('utf-16'); 'a'.join('bc'); '{} {a!r:>5}'.format(1, a='x')
'{a}'.format_map({'a': 1}); '%(a)s' % {'a': 1}; 7 // 2; 7 % 2; 2 ** 10; 'a' ~ 1 ~ none; [1] + [2]; 'a' * 3
messages[-1]['role']; messages[0:1]|length; 'a' if false; ('a', 'b')[1]; {'a': {'b': 1}}.a.b; 'x'.isdigit()
strftime_now('%Y-%m-%d %H'); '\\u00e9\\N{BULLET}\\x41'; namespace(_a=1); raise_exception('no such')
messages[0].nothing.more; 'x'|nothing; messages.append(1)
""".replace("\n", ";")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write(folder)
    return Tokenizer(folder)


def as_transformers_does(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    options: dict[str, Any],
    **how: bool,
) -> str | None:
    """None if it refuses."""
    try:
        said = tokenizer._tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=how.get("begins_answer", True),
            continue_final_message=how.get("continues", False),
            **options,
        )
    except Exception:
        return None
    return str(said)


def as_we_do(tokenizer: Tokenizer, *asked: Any, **how: bool) -> str | None:
    try:
        return tokenizer.render(*asked, **how)
    except InvalidRequestError:
        return None


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
def test_prompts_are_the_same(tokenizer: Tokenizer, template: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
    rendered = 0
    for tools in ([], [TOOL]):
        for how in ({}, {"begins_answer": False}, {"begins_answer": False, "continues": True}):
            asked = (CONVERSATIONS[name], tools, {"enable_thinking": False, "colour": "red"})
            expected = as_transformers_does(tokenizer, *asked, **how)
            assert as_we_do(tokenizer, *asked, **how) == expected
            rendered += expected is not None
    assert rendered or "message.content" in template, "all refused"


def test_expressions_are_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those for which Jinja loads more of itself, which it cannot where no file can be opened."""
    expressions = [expression.strip() for expression in EXPRESSIONS.split(";") if expression.strip()]
    for expression in expressions:
        monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ " + expression + " }}")
        asked = (CONVERSATIONS["short"], [TOOL], {})
        assert as_we_do(tokenizer, *asked) == as_transformers_does(tokenizer, *asked), expression
    text = " ".join(expressions)
    assert [name for name in Environment().filters if f"|{name}" not in text] == []


def test_what_follows_from_a_block_is_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = """
    {% set a = 1 %}{% generation %}{% set a = 2 %}x{% endgeneration %}{{ a }}
    {% for b in range(9) if b is odd %}{% if b == 3 %}{% continue %}{% elif b == 7 %}{% break %}{% endif %}{{ b }}
    {% endfor %}{% filter upper %}x{% endfilter %}{% set c %}y{% endset %}{{ c }}
    {%- macro m(a, b='z') %}{{ a ~ b ~ caller() }}{% endmacro %}{% call m(1) %}q{% endcall %}
    {% with d = 1 %}{{ d }}{% endwith %}
    {% for e in [[1, [2]]] recursive %}{{ loop.depth }}{{ loop(e[1:]) if e is iterable and e[1:] }}{% endfor %}
    {% block g %}{{ a }}{% endblock %}{{ self.g() }}{# nothing #}{% raw %}{{ x }}{% endraw %}
    """
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
    expected = as_transformers_does(tokenizer, CONVERSATIONS["short"], [], {})
    assert expected
    assert as_we_do(tokenizer, CONVERSATIONS["short"], [], {}) == expected


@pytest.mark.parametrize(
    "content", ["It is ", "It is", " \n", "", [{"type": "text", "text": "It is "}, {"type": "image"}], [], None]
)
@pytest.mark.parametrize("shown", ["message.content", "message.content|trim", "message.content[0].text", "'content'"])
def test_messages_go_on_where_they_end(
    tokenizer: Tokenizer, shown: str, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for message in messages %}<{{ " + shown + " }}>{% endfor %}"
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)
    asked = ([{"role": "assistant", "content": content}], [], {})
    expected = as_transformers_does(tokenizer, *asked, begins_answer=False, continues=True)
    prompt = as_we_do(tokenizer, *asked, begins_answer=False, continues=True)
    assert prompt == expected
    assert MARK.strip() not in (prompt or "")


def test_a_template_of_its_own_for_tools(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools|length }}"}]
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"chat_template": named}))
    both = Tokenizer(tmp_path)
    assert both.template == "plain"
    assert both.render(CONVERSATIONS["short"], [], {}) == "plain"
    assert both.render(CONVERSATIONS["short"], [TOOL], {}) == "with 1"
    file.write_text(json.dumps(settings | {"chat_template": named[1:]}))
    with pytest.raises(ModelLoadError, match="no default"):
        Tokenizer(tmp_path)


def test_no_variable_takes_the_place_of_the_messages(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=r"chat_template_kwargs\.messages"):
        tokenizer.render(CONVERSATIONS["short"], [], {"messages": []})


def test_nothing_is_no_conversation(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        tokenizer.render([], [], {})
