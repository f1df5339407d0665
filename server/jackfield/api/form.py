"""What form an answer has: what constrains it, and how thoughts, text and calls are told apart in it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jackfield.engine.grammar import Constraint
from jackfield.engine.triggers import AfterThinking, TriggeredGrammars
from jackfield.errors import InvalidRequestError
from jackfield.models.registry import ServedModel
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.formats import JsonObjectFormat, JsonSchemaFormat
from jackfield.protocol.sampling import SamplingRequest
from jackfield.protocol.tools import NamedToolChoice
from jackfield.text.reasoning import ThinkingParser
from jackfield.text.separator import Separator
from jackfield.text.tool_calls import ToolCallParser
from jackfield.tools.formats import HERMES, CallFormat
from jackfield.tools.grammars import AS_DUMPED, Style, closed, json_rule
from jackfield.tools.offered import Tool, Tools

PluggedParser = Callable[[frozenset[str]], ToolCallParser]
"""A plugin's way to find calls: all that is known of it."""

TAIL_TOKENS = 16
"""The end of a prompt in which thoughts may be opened or closed."""


@dataclass(frozen=True)
class Form:
    """The form of one request's answers.

    Args:
        constraint: what the engine holds them to.
        separator: makes what takes them apart.
        visible: special tokens that are part of their text.
    """

    constraint: Constraint | None
    separator: Callable[[], Separator]
    visible: frozenset[int] = frozenset()


def constraint_of(asked: SamplingRequest, model: ServedModel) -> Constraint | None:
    """What ``regex`` or ``grammar`` hold a text to.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    if asked.regex is not None:
        return model.grammars.compile("regex", asked.regex, "regex")
    if asked.grammar is not None:
        return model.grammars.compile("lark", asked.grammar, "grammar")
    return None


class ChatForm:
    """Works out the form of a conversation's next message.

    Args:
        asked: the request.
        model: who answers.
        own: the format of calls that the model's template asks for; with a plugin's parser, `HERMES`.
        plugged: that parser.
        prompt: the conversation's tokens.
    """

    def __init__(
        self,
        asked: ChatCompletionRequest,
        model: ServedModel,
        own: CallFormat,
        plugged: PluggedParser | None,
        prompt: Sequence[int],
    ) -> None:
        self._asked = asked
        self._model = model
        self._must = asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedToolChoice)
        self._tools = self._offered()
        # What a plugin or mlx-lm reads cannot be enforced; what has to be is written in Hermes' form.
        self._format = HERMES if self._must and own.grammar is None else own
        self._plugged = None if self._must else plugged
        self._style = Style(self._token, model.tokenizer.template)
        self._tail = model.tokenizer.decode(prompt[-TAIL_TOKENS:], special=True).rstrip()

    def work_out(self) -> Form:
        """The form.

        Raises:
            InvalidRequestError: what the answer has to be cannot be enforced.
        """
        constraint = self._constraint()
        marks = {self._model.tokenizer.special_token(mark) for mark in self._format.markers}
        visible = frozenset(mark for mark in marks if mark is not None) if self._calls else frozenset()
        return Form(constraint and self._after_thinking(constraint), self._separator, visible)

    # --- What constrains it ------------------------------------------------------------------------------------------

    def _constraint(self) -> Constraint | None:
        if self._must:
            return self._forced()
        answer = self._answer_rule()
        if answer is not None and self._calls:
            return self._call_or(answer)
        if answer is not None:
            return self._formatted()
        if (own := constraint_of(self._asked, self._model)) is not None:
            return own
        return self._triggered() if self._calls and self._plugged is None else None

    def _forced(self) -> Constraint:
        assert self._format.grammar is not None  # noqa: S101 - chosen so
        several = self._asked.parallel_tool_calls is True and self._asked.tool_choice == "required"
        source = self._format.grammar.forced(self._tools, self._style, several=several)
        return self._model.grammars.compile("lark", source, "tools")

    def _formatted(self) -> Constraint:
        wanted = self._asked.response_format
        if isinstance(wanted, JsonSchemaFormat):
            schema = json.dumps(wanted.json_schema.schema_ or {})
            return self._model.grammars.compile("json_schema", schema, "response_format.json_schema.schema")
        return self._model.grammars.compile("json_schema", '{"type": "object"}', "response_format")

    def _answer_rule(self) -> str | None:
        """What ``response_format`` asks for, as a rule."""
        wanted = self._asked.response_format
        if isinstance(wanted, JsonObjectFormat):
            return json_rule({"type": "object"}, AS_DUMPED)
        if isinstance(wanted, JsonSchemaFormat):
            return json_rule(wanted.json_schema.schema_ or {}, AS_DUMPED)
        return None

    def _call_or(self, answer: str) -> Constraint:
        """A call, or else an answer in the form that was asked for."""
        self._formatted()  # which says what is wrong with it
        grammar = self._format.grammar or HERMES.grammar
        assert grammar is not None  # noqa: S101 - Hermes' has one
        enforced = Tools([tool for tool in self._tools if tool.enforced])
        calls = grammar.forced(enforced, self._style, several=self._asked.parallel_tool_calls is not False)
        source = calls.replace("start:", "calls:", 1) + f"\nanswer: {answer}\nstart: calls | answer"
        return self._model.grammars.compile("lark", source, "tools")

    def _triggered(self) -> Constraint | None:
        grammar = self._format.grammar
        triggers = grammar.triggers(self._tools, self._style) if grammar else []
        if not triggers:
            return None
        compile_ = self._model.grammars.compile
        compiled = [(trigger.pattern, compile_("lark", trigger.grammar, "tools")) for trigger in triggers]
        return TriggeredGrammars(self._model.grammars.tokenizer, compiled)

    def _after_thinking(self, constraint: Constraint) -> Constraint:
        """Thoughts are free, if the model may think."""
        tags = self._model.tokenizer.thinking
        if tags is None or self._tail.endswith(tags.closing):
            return constraint
        opened = self._tail.endswith(tags.opening)
        opening = self._token(tags.opening)
        if not opened and opening is None:
            return constraint
        tokenizer = self._model.grammars.tokenizer
        return AfterThinking(tokenizer, constraint, tags.closing.encode(), None if opened else opening)

    def _token(self, text: str) -> int | None:
        """The token that was added as ``text``, if the model can write it."""
        token = self._model.tokenizer.added_token(text)
        return token if token is not None and token < self._model.vocabulary else None

    # --- How it is taken apart ---------------------------------------------------------------------------------------

    def _separator(self) -> Separator:
        return Separator(self._thoughts(), self._parser())

    def _thoughts(self) -> ThinkingParser | None:
        tags = self._model.tokenizer.thinking
        return None if tags is None else ThinkingParser(tags, open=self._tail.endswith(tags.opening))

    def _parser(self) -> ToolCallParser | None:
        if not self._calls:
            return None
        return self._format.parser(self._tools) if self._plugged is None else self._plugged(self._tools.names)

    # --- Tools -------------------------------------------------------------------------------------------------------

    @property
    def _calls(self) -> bool:
        """Whether there may be calls."""
        return bool(self._tools)

    def _offered(self) -> Tools:
        """The tools that may be called now."""
        asked = self._asked
        if asked.tool_choice == "none":
            return Tools([])
        named = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedToolChoice) else None
        return Tools(
            [
                self._tool(index, tool.function.name, tool.function.parameters or {}, strict=bool(tool.function.strict))
                for index, tool in enumerate(asked.tools or ())
                if named in (None, tool.function.name)
            ]
        )

    def _tool(self, index: int, name: str, parameters: dict[str, Any], *, strict: bool) -> Tool:
        param = f"tools.{index}.function.parameters"
        try:
            self._model.grammars.compile("json_schema", json.dumps(closed(parameters)), param)
        except InvalidRequestError:
            if strict or self._must:
                raise
            # The model is free to call it; whether the arguments fit is seen when they are whole.
            return Tool(name, parameters)
        return Tool(name, parameters, enforced=True)
