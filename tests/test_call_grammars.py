"""Grammars of calls: whatever a model writes within them, by chance too, is a call whose arguments fit."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from llguidance.numpy import allocate_token_bitmask

from jackfield.engine.grammar import Constraint, GrammarCompiler, Matcher
from jackfield.engine.triggers import AfterThinking, TriggeredGrammars
from jackfield.errors import InvalidRequestError
from jackfield.models.tokenizer import Tokenizer
from jackfield.text.pieces import message
from jackfield.tools.formats import named
from jackfield.tools.grammars import Style
from jackfield.tools.offered import Tool, Tools

ORDER = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "extras": {"type": "array", "items": {"enum": ["nuts", "cream", 'a "b"']}, "maxItems": 3},
        "paid": {"type": "boolean"},
    },
    "required": ["size", "paid"],
}
TOOLS = Tools([Tool("order", ORDER, enforced=True), Tool("now", {"type": "object", "properties": {}}, enforced=True)])
FAMILIES = ["hermes", "qwen3_coder", "mistral", "llama"]
STEPS = 300


@pytest.fixture(scope="module")
def tokenizer(starter: Path) -> Tokenizer:
    return Tokenizer(starter)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.source, 49152, sorted(tokenizer.end_tokens))


def style(tokenizer: Tokenizer, template: str = "") -> Style:
    return Style(tokenizer.added_token, template)


def triggered(family: str, compiler: GrammarCompiler, tokenizer: Tokenizer, tools: Tools = TOOLS) -> TriggeredGrammars:
    triggers = named(family).grammar.triggers(tools, style(tokenizer))
    compiled = [(trigger.pattern, compiler.compile("lark", trigger.grammar, "tools")) for trigger in triggers]
    return TriggeredGrammars(compiler.tokenizer, compiled)


def allowed(matcher: Matcher) -> np.ndarray:
    """Ids of the tokens that may come next."""
    bits = allocate_token_bitmask(1, 49152)
    matcher.fill(bits, 0)
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def written_by_chance(matcher: Matcher, chance: random.Random, ends: frozenset[int]) -> list[int]:
    """Tokens that are allowed, until nothing has to follow."""
    answer: list[int] = []
    for _ in range(STEPS):
        token = int(chance.choice(allowed(matcher)))
        if token in ends:
            return answer
        answer.append(token)
        if matcher.advance(token) or not matcher.constrains:
            return answer
        assert not matcher.failed
    raise AssertionError("it does not come to an end")


def calls_in(text: str, family: str, tools: Tools = TOOLS) -> list[tuple[str, dict]]:
    parser = named(family).parser(tools)
    whole = message(parser.push(text) + parser.finish())
    assert whole.text == ""
    return [(call.name, json.loads(call.arguments)) for call in whole.calls]


def begun(constraint: Constraint, text: str, tokenizer: Tokenizer) -> Matcher:
    """A matcher that has seen this text."""
    matcher = constraint.start()
    for token in tokenizer.encode(text, special=False):
        assert not matcher.advance(token)
    return matcher


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("template", ["", "[ARGS]"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_has_to_call_does(
    family: str, template: str, seed: int, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    source = named(family).grammar.forced(TOOLS, style(tokenizer, template), several=False)
    matcher = compiler.compile("lark", source, "tools").start()
    answer = written_by_chance(matcher, random.Random(seed), tokenizer.end_tokens)
    ((name, arguments),) = calls_in(tokenizer.decode(answer, special=True), family)
    assert TOOLS.get(name).fits(arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_calls_are_allowed_where_they_are_wanted(
    family: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    source = named(family).grammar.forced(TOOLS, style(tokenizer), several=True)
    once = named(family).grammar.forced(TOOLS, style(tokenizer), several=False)
    matcher = compiler.compile("lark", once, "tools").start()
    answer = written_by_chance(compiler.compile("lark", once, "tools").start(), random.Random(1), frozenset())
    one = tokenizer.decode(answer, special=True)
    both = one[:-1] + ", " + one.removeprefix("[TOOL_CALLS][") if family == "mistral" else f"{one}\n{one}"
    tokens = tokenizer.encode(both, special=False)
    assert not all(_takes(matcher, token) for token in tokens)
    more = compiler.compile("lark", source, "tools").start()
    assert all(_takes(more, token) for token in tokens)
    assert len(calls_in(both, family)) == 2


def _takes(matcher: Matcher, token: int) -> bool:
    matcher.advance(token)
    return not matcher.failed


BEGINNINGS = {
    "hermes": [
        "<tool_call>",
        "Well.\n<tool_call>\n",
        '```json\n{"name": "order", "arguments": ',
        '{"name": "order", "arguments":',
    ],
    "qwen3_coder": ["<tool_call>\n<function=", "I look.\n<function=", '{"name": "order", "arguments": {'],
    "mistral": ["[TOOL_CALLS]order[ARGS]", '[TOOL_CALLS] [{"name": "order", "arguments": '],
    "llama": ['{"name": "order", "parameters": ', '<|python_tag|>{"name": "order", "parameters": {"'],
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("family", "text"), [(family, text) for family, texts in BEGINNINGS.items() for text in texts])
def test_a_call_that_was_begun_is_held_to_its_tool(
    family: str, text: str, seed: int, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = begun(triggered(family, compiler, tokenizer), text, tokenizer)
    assert matcher.constrains
    answer = written_by_chance(matcher, random.Random(seed), frozenset())
    assert not matcher.constrains, "it lets go behind the call"
    parser = named(family).parser(TOOLS)
    whole = message(parser.push(text + tokenizer.decode(answer, special=True)) + parser.finish())
    (call,) = whole.calls
    assert TOOLS.get(call.name).fits(json.loads(call.arguments))


@pytest.mark.parametrize(
    "text",
    [
        "Nothing is called here: <tool_cal",
        '{"name": "order", "age": 3}',
        '{"name": "format_disk", "arguments": {}}',
        "<function>",
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_text_is_free(family: str, text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = begun(triggered(family, compiler, tokenizer), text, tokenizer)
    assert not matcher.constrains
    assert not matcher.failed


def test_a_second_call_is_held_to_its_tool_as_well(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    constraint = triggered("hermes", compiler, tokenizer)
    assert not begun(constraint, f"{call}\n", tokenizer).constrains
    assert begun(constraint, f"{call}\n<tool_call>", tokenizer).constrains


def test_a_schema_that_cannot_be_enforced_leaves_the_arguments_free(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    tools = Tools([Tool("free", {"type": "object", "not": {"required": ["x"]}})])
    matcher = begun(triggered("hermes", compiler, tokenizer, tools), "<tool_call>", tokenizer)
    for token in tokenizer.encode('\n{"name": "free", "arguments": {"y": [1]}}\n</tool_call>', special=False):
        assert _takes(matcher, token)
    assert not matcher.constrains


@pytest.mark.parametrize(
    ("schema", "named_part"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "format": "haiku"}, "haiku"),
    ],
)
def test_what_cannot_be_enforced_is_named(schema: dict, named_part: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError, match=named_part) as caught:
        compiler.compile("json_schema", json.dumps(schema), "response_format.json_schema.schema")
    assert caught.value.param == "response_format.json_schema.schema"
    assert caught.value.error_code == "invalid_grammar"


TEXTS = Tools([Tool("say", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}, True)])


def test_text_in_tags_is_free_up_to_its_end(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    source = named("qwen3_coder").grammar.forced(TEXTS, style(tokenizer), several=False)
    text = '<tool_call>\n<function=say>\n<parameter=text>\n"a" <b>\n</p>\n\n</parameter>\n</function>\n</tool_call>'
    matcher = compiler.compile("lark", source, "tools").start()
    assert all(_takes(matcher, token) for token in tokenizer.encode(text, special=False))
    assert calls_in(text, "qwen3_coder", TEXTS) == [("say", {"text": '"a" <b>\n</p>\n'})]


@pytest.mark.parametrize("limit", [{"maxLength": 3}, {"pattern": "^a"}, {"format": "date"}])
def test_limits_of_texts_hold_in_every_family(limit: dict, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", **limit}}, "required": ["text"]}
    tools = Tools([Tool("say", schema, enforced=True)])
    source = named("qwen3_coder").grammar.forced(tools, style(tokenizer), several=False)
    matcher = begun(
        compiler.compile("lark", source, "tools"), '<tool_call>\n{"name": "say", "arguments": {"text": "', tokenizer
    )
    assert not all(_takes(matcher, token) for token in tokenizer.encode("blue sky", special=False))
    assert not begun(triggered("qwen3_coder", compiler, tokenizer, tools), "<function=say>", tokenizer).constrains


def thinking(compiler: GrammarCompiler, tokenizer: Tokenizer, *, opening: int | None) -> AfterThinking:
    inner = compiler.compile("regex", "yes|no", "regex")
    return AfterThinking(compiler.tokenizer, inner, b"</think>", opening)


def test_thoughts_are_free_and_what_follows_is_not(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = begun(thinking(compiler, tokenizer, opening=None), "Well, let me see", tokenizer)
    assert not matcher.constrains
    for token in tokenizer.encode(" it.\n</think>", special=False):
        matcher.advance(token)
    assert matcher.constrains
    answer = written_by_chance(matcher, random.Random(1), tokenizer.end_tokens)
    assert tokenizer.decode(answer) in {"yes", "no"}


def test_an_answer_may_begin_to_think_or_not(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    opening = 40_000  # any token that the grammar forbids
    matcher = thinking(compiler, tokenizer, opening=opening).start()
    assert opening in allowed(matcher)
    matcher.advance(opening)
    assert not matcher.constrains
    other = thinking(compiler, tokenizer, opening=opening).start()
    (first, *_) = tokenizer.encode("yes", special=False)
    other.advance(first)
    assert other.constrains
    assert opening not in allowed(other)


def test_triggers_in_thoughts_trigger_nothing(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    inner = triggered("hermes", compiler, tokenizer)
    matcher = begun(AfterThinking(compiler.tokenizer, inner, b"</think>", None), "I may write <tool_call>", tokenizer)
    assert not matcher.constrains
    for token in tokenizer.encode("</think>\n<tool_call>", special=False):
        matcher.advance(token)
    assert matcher.constrains


def test_all_of_a_grammar_is_matched(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    sources: Sequence[tuple[str, str]] = [("regex", "[ab]{2}-[0-9]"), ("lark", 'start: ("a" | "b") "-" /[0-9]/')]
    for kind, source in sources:
        matcher = compiler.compile(kind, source, "regex").start()
        answer = tokenizer.decode(written_by_chance(matcher, random.Random(3), tokenizer.end_tokens))
        assert answer[-2] == "-"
        assert answer[-1].isdigit()
