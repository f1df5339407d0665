"""How tools, calls and results come to the model: by its template, or in the system message."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tokenizers
from openai import OpenAI

from jackfield.engine.request import FinishEvent
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.testing import StartServer
from jackfield.tools.formats import format_of
from model_fixtures import TOOL_TEMPLATE
from scripted_engine import staged

MISTRAL = """\
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined %}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id|length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- '[TOOL_CALLS] [{"name": "' + call.function.name + '", "id": "' + call.id + '"}]' }}
{%- endfor %}
{%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS] ' + message.tool_call_id + ' ' + message.content }}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}
"""
"""What matters here of the template of Mistral-7B-Instruct-v0.3."""

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
CALL = {"id": "call_0123456789abcdef", "type": "function", "function": FUNCTION}
CONVERSATION = [
    {"role": "user", "content": "How is it in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "abcDEF123"}]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": "Fine."},
    {"role": "tool", "tool_call_id": "abcDEF123", "content": "Wet."},
]


def prompt(tokenizer: Tokenizer, **fields: object) -> str:
    asked = ChatCompletionRequest.model_validate({"model": "x", "messages": CONVERSATION, **fields})
    return tokenizer.decode(chat_prompt(asked, tokenizer).tokens, special=True)


@pytest.fixture
def mistral(starter: Path, tmp_path: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(starter / name, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": MISTRAL}))
    return Tokenizer(tmp_path)


def test_ids_survive_a_template_that_takes_only_short_ones(mistral: Tokenizer) -> None:
    text = prompt(mistral)
    first, second = re.findall(r'"id": "(\w+)"', text)
    assert (len(first), second) == (9, "abcDEF123")
    assert f"[TOOL_RESULTS] {first} Fine." in text
    assert f"[TOOL_RESULTS] {second} Wet." in text


def test_a_template_without_tools_gets_them_in_the_system_message(starter: Path) -> None:
    text = prompt(Tokenizer(starter), tools=[TOOL])
    system, _, rest = text.partition("<|im_end|>")
    assert '<tools>\n{"type": "function", "function": {"name": "get_weather"' in system
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in rest
    assert "<tool_response>\nFine.\n</tool_response>" in rest


def test_no_tools_are_shown_where_none_may_be_called(starter: Path) -> None:
    assert "<tools>" not in prompt(Tokenizer(starter), tools=[TOOL], tool_choice="none")


def test_a_special_token_that_begins_a_call_is_seen(starter: Path, tmp_path: Path) -> None:
    tokens = tokenizers.Tokenizer.from_file(str(starter / "tokenizer.json"))
    tokens.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "<|other|>"])
    tokens.save(str(tmp_path / "tokenizer.json"))
    settings = json.loads((starter / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": MISTRAL}))
    with staged(tmp_path) as stage, OpenAI(base_url=f"{stage.url}/v1", api_key="any", max_retries=0) as client:
        said = 'I look.<|other|>[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}'
        stage.engine.scripts = [stage.script(said, FinishEvent("stop"))]
        answer = client.chat.completions.create(model="actor", messages=CONVERSATION, tools=[TOOL]).choices[0]
    assert answer.message.content == "I look."
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')


TEMPLATES = {
    "hermes": TOOL_TEMPLATE,
    "qwen3_coder": "{% if tools %}<tool_call>\n<function=example_function_name>\n<parameter=a>{% endif %}",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
    "llama": "<|start_header_id|>system<|end_header_id|>{% if tools is not none %}Environment: ipython{% endif %}",
    "glm47": "{% if tools %}<tool_call>{function-name}\n<arg_key>{% endif %}",
    "pythonic": "{% if tools %}<|tool_list_start|>{% endif %}",
    "minimax_m2": "{% if tools %}<minimax:tool_call>{% endif %}",
    "kimi_k2": "{% if tools %}<|tool_calls_section_begin|>{% endif %}",
}


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items(), ids=TEMPLATES)
def test_the_chat_template_says_how_calls_are_written(name: str, template: str) -> None:
    assert format_of(template).name == name


@pytest.mark.parametrize("template", ["", "<|start_header_id|>{{ message.content }}", "[INST]{{ message.content }}"])
def test_a_template_that_shows_no_tools_means_hermes_form(template: str) -> None:
    assert format_of(template).name == "hermes"


def test_a_setting_goes_before_the_template(jackfield_server: StartServer) -> None:
    server = jackfield_server(tool_parser="mistral")
    server.says('[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}')
    (call, *_) = server.chat("How is it in Oslo?", tools=[TOOL]).tool_calls
    assert call["function"]["name"] == "get_weather"
