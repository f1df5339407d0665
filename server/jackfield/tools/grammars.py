"""Grammars of calls, in llguidance's dialect of Lark: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.

They are used in two ways. A *forced* grammar is the whole answer: the model has to call. A *triggered* one takes over
where the model begins a call by itself, and lets go behind it: so arguments always fit their schema, and can go out as
they come.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import regex

from jackfield.json_schema import enforceable
from jackfield.tools.offered import JsonObject, Tool, Tools

AS_WRITTEN = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\t]{0,24}"}
"""Spaces between a call's parts as the model likes them, though not for ever."""

AS_DUMPED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way of spacing, as ``json.dumps`` does it: given the choice, small models write blanks for ever."""

BLANK = r"BLANK: /[ \n\t]{0,24}/"


@dataclass(frozen=True)
class Style:
    """How a model's tokenizer and template have it.

    Args:
        token: the id of a token that was added to the vocabulary under this text, or None.
        template: the chat template.
    """

    token: Callable[[str], int | None]
    template: str

    def mark(self, text: str) -> str:
        """A marker in a grammar, as one token or spelled out."""
        token = self.token(text)
        return literal(text) if token is None else f"(<[{token}]> | {literal(text)})"


@dataclass(frozen=True)
class Trigger:
    """A grammar (Lark) that takes over where ``pattern``, a regular expression, has just been written."""

    pattern: str
    grammar: str


class CallGrammar(Protocol):
    """How one family's calls are enforced."""

    def triggers(self, tools: Tools, style: Style) -> list[Trigger]:
        """For answers that may call; those earlier in the list count first."""

    def forced(self, tools: Tools, style: Style, *, several: bool) -> str:
        """For answers that have to call, once or several times."""


def literal(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def closed(schema: JsonObject) -> JsonObject:
    """The schema of arguments, which takes nothing that it does not name: no function expects that.

    Small models fill open objects with inventions until they are cut off.
    """
    if schema and ("properties" not in schema or schema.keys() & {"allOf", "anyOf", "oneOf", "$ref"}):
        return schema
    return {"type": "object", "properties": {}, "additionalProperties": False, **schema}


def json_rule(schema: Any, spacing: JsonObject) -> str:
    """A JSON value as part of a rule."""
    options = {"x-guidance": spacing}
    enforced = {**enforceable(schema), **options} if isinstance(schema, dict) else options
    return "%json " + json.dumps(enforced, ensure_ascii=False)


def arguments_schema(tool: Tool) -> JsonObject:
    """What is enforced of a tool's arguments."""
    return closed(tool.parameters) if tool.enforced else {"type": "object"}


def _alternatives(rules: Iterable[str]) -> str:
    return " | ".join(rules)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]


class JsonGrammar:
    """What all families have in common: calls as JSON objects, wherever they stand."""

    arguments = "arguments"

    def triggers(self, tools: Tools, style: Style) -> list[Trigger]:
        """Take over behind ``{"name": "NAME", "arguments":``."""
        return [
            Trigger(
                rf'\{{\s*"name"\s*:\s*"{regex.escape(tool.name)}"\s*,\s*"(?:arguments|parameters)"\s*:',
                _lark('BLANK arguments BLANK "}"', [f"arguments: {json_rule(closed(tool.parameters), AS_WRITTEN)}"]),
            )
            for tool in tools
            if tool.enforced
        ]

    def forced(self, tools: Tools, style: Style, *, several: bool) -> str:
        """One object, or several with line breaks between them."""
        return _repeated(self._call(style), self._objects(tools), several, literal("\n"))

    def _call(self, style: Style) -> str:
        """What a call is, given the rule ``object``."""
        return "object"

    def _objects(self, tools: Tools) -> list[str]:
        """Rules of ``object``, one way of spacing."""
        listed = list(tools)
        names = _numbered("arguments", len(listed))
        heads = [literal(f'{{"name": {json.dumps(tool.name)}, "{self.arguments}": ') for tool in listed]
        objects = [f'{head} {name} "}}"' for head, name in zip(heads, names, strict=True)]
        schemas = [json_rule(closed(tool.parameters), AS_DUMPED) for tool in listed]
        return [
            f"object: {_alternatives(objects)}",
            *(f"{name}: {schema}" for name, schema in zip(names, schemas, strict=True)),
        ]


class LlamaGrammar(JsonGrammar):
    """Llama 3: ``{"name": ..., "parameters": {...}}``."""

    arguments = "parameters"


class HermesGrammar(JsonGrammar):
    """Hermes and Qwen: an object in ``<tool_call>`` and ``</tool_call>``."""

    def triggers(self, tools: Tools, style: Style) -> list[Trigger]:
        """The tag itself decides that there will be a call, of a tool that there is."""
        listed = list(tools)
        names = _numbered("call", len(listed))
        head = r'"{" BLANK "\"name\"" BLANK ":" BLANK'
        rules = [
            f'{name}: {literal(json.dumps(tool.name))} BLANK "," BLANK "\\"arguments\\"" BLANK ":" BLANK '
            f"{json_rule(arguments_schema(tool), AS_WRITTEN)}"
            for name, tool in zip(names, listed, strict=True)
        ]
        start = f'BLANK {head} ({_alternatives(names)}) BLANK "}}" BLANK {style.mark("</tool_call>")}'
        return [Trigger("<tool_call>", _lark(start, rules)), *super().triggers(tools, style)]

    def _call(self, style: Style) -> str:
        return f'{style.mark("<tool_call>")} "\\n" object "\\n" {style.mark("</tool_call>")}'


class QwenCoderGrammar(JsonGrammar):
    """Qwen3-Coder: ``<function=NAME>`` with a tag for each parameter."""

    def triggers(self, tools: Tools, style: Style) -> list[Trigger]:
        """Take over behind ``<function=``, if all tools can be enforced: the name is not known yet."""
        own = [Trigger("<function=", _lark("function", self._functions(tools)))] if self._enforces(tools) else []
        return [*own, *super().triggers(tools, style)]

    @staticmethod
    def _enforces(tools: Tools) -> bool:
        return all(tool.in_tags for tool in tools)

    def forced(self, tools: Tools, style: Style, *, several: bool) -> str:
        """In the tag that the template asks for; as Hermes does it where only JSON can be enforced."""
        if not self._enforces(tools):
            return HermesGrammar().forced(tools, style, several=several)
        call = f'{style.mark("<tool_call>")} "\\n<function=" function "\\n" {style.mark("</tool_call>")}'
        return _repeated(call, self._functions(tools), several, literal("\n"))

    def _functions(self, tools: Tools) -> list[str]:
        listed = list(tools)
        names = _numbered("function", len(listed))
        rules = [f"function: {_alternatives(names)}"]
        for name, tool in zip(names, listed, strict=True):
            rules += self._function(name, tool)
        return rules

    def _function(self, rule: str, tool: Tool) -> list[str]:
        schema = closed(tool.parameters)
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        parts, rules = [], []
        for index, key in enumerate(properties):
            name = f"{rule}_{index}"
            parts.append(name if key in required else f"{name}?")
            rules += self._parameter(name, key, tool)
        head = literal(f"{tool.name}>\n")
        return [f'{rule}: {head} {" ".join(parts)} "</function>"', *rules]

    def _parameter(self, rule: str, key: str, tool: Tool) -> list[str]:
        head, end = literal(f"<parameter={key}>\n"), "\n</parameter>\n"
        schema = tool.schema_of(key)
        if not tool.takes_text(key):
            value = self._value(schema, tool)
            return [f"{rule}: {head} {rule}_value {literal(end)}", f"{rule}_value: {json_rule(value, AS_DUMPED)}"]
        if "enum" in schema:
            choices = _alternatives(literal(str(value)) for value in schema["enum"])
            return [f"{rule}: {head} ({choices}) {literal(end)}"]
        return [f"{rule}: {head} {rule}_text", f"{rule}_text[suffix={literal(end)}]: /(.|\\n)*/"]

    @staticmethod
    def _value(schema: Any, tool: Tool) -> Any:
        """The parameter's schema with the definitions that it may refer to."""
        if not isinstance(schema, dict):
            return schema
        return {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters} | schema


class MistralGrammar(JsonGrammar):
    """Mistral: ``[TOOL_CALLS]`` and a list of objects, or, since tokenizer v11, ``NAME[ARGS]`` and the arguments."""

    def triggers(self, tools: Tools, style: Style) -> list[Trigger]:
        """Behind ``[ARGS]``, and as for all."""
        own = [
            Trigger(
                rf"(?<![\w.-]){regex.escape(tool.name)}(?:\[CALL_ID\]\w+)?\[ARGS\]",
                _lark("arguments", [f"arguments: {json_rule(closed(tool.parameters), AS_WRITTEN)}"]),
            )
            for tool in tools
            if tool.enforced
        ]
        return [*own, *super().triggers(tools, style)]

    def forced(self, tools: Tools, style: Style, *, several: bool) -> str:
        """As the template has it."""
        if "[ARGS]" in style.template:
            return self._named(tools, style, several=several)
        more = '(", " object)*' if several else ""
        return _lark(f'{style.mark("[TOOL_CALLS]")} "[" object {more} "]"', self._objects(tools))

    def _named(self, tools: Tools, style: Style, *, several: bool) -> str:
        calls = _alternatives(
            f"{literal(tool.name)} {style.mark('[ARGS]')} arguments_{index}" for index, tool in enumerate(tools)
        )
        rules = [
            f"arguments_{index}: {json_rule(closed(tool.parameters), AS_DUMPED)}" for index, tool in enumerate(tools)
        ]
        return _repeated(f"{style.mark('[TOOL_CALLS]')} ({calls})", rules, several, "")


def _repeated(call: str, rules: list[str], several: bool, separator: str) -> str:
    start = f"call ({separator} call)*" if several else "call"
    return _lark(start, [f"call: {call}", *rules])


def _lark(start: str, rules: Iterable[str]) -> str:
    text = "\n".join([f"start: {start}", *rules])
    return f"{text}\n{BLANK}" if "BLANK" in text else text
