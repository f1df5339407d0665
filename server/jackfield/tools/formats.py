"""How model families write calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jackfield.text.tool_calls import ToolCallParser
from jackfield.tools.borrowed import BORROWED, borrowed, markers
from jackfield.tools.functions import FunctionReader, StreamedFunctionReader
from jackfield.tools.grammars import CallGrammar, HermesGrammar, LlamaGrammar, MistralGrammar, QwenCoderGrammar
from jackfield.tools.offered import Tools
from jackfield.tools.readers import BareReader, NamedReader, ObjectReader
from jackfield.tools.scanner import LINE, CallScanner, Opening

FENCE = LINE + r"```(?:json|tool_call|xml)?[ \t]*\n\s*"
OBJECT, FUNCTION = r"(?=\{)", r"(?=<function=)"
LIST = rf"\[\s*{OBJECT}"
TAG, TAG_END = r"<tool_call>\s*", r"</tool_call>"

_UNWRAPPED = (
    Opening(r"<tools>\s*" + OBJECT, ObjectReader, "</tools>", rf"\s*{OBJECT}", repaired=True),
    Opening(r"<tools>\s*" + LIST, ObjectReader, r"\]\s*</tools>", rf"\s*,\s*{OBJECT}", repaired=True),
    Opening(FENCE + OBJECT, BareReader, r"```", rf"\s*,?\s*{OBJECT}", repaired=True),
    Opening(FENCE + LIST, BareReader, r"\]\s*```", rf"\s*,\s*{OBJECT}", repaired=True),
    Opening(LINE + OBJECT, BareReader, "", rf"\s*[,;]?\s*{OBJECT}", repaired=True),
    Opening(LINE + LIST, BareReader, r"\]", rf"\s*,\s*{OBJECT}", repaired=True),
)
"""Calls as Qwen2.5-Coder and small models of all families write them, whatever their template says."""


def _qwen(*, functions: bool) -> tuple[Opening, ...]:
    """Of Qwen's models, either of whose ways is accepted from all of them; ``functions`` tells which is their own."""
    reader = StreamedFunctionReader if functions else FunctionReader
    return (
        Opening(TAG + OBJECT, ObjectReader, TAG_END, rf"\s*,?\s*{OBJECT}", repaired=functions),
        Opening(TAG + LIST, ObjectReader, r"\]\s*" + TAG_END, rf"\s*,\s*{OBJECT}", repaired=True),
        Opening(TAG + FUNCTION, reader, TAG_END, rf"\s*{FUNCTION}", repaired=not functions),
        Opening(FUNCTION, reader, TAG_END, rf"\s*{FUNCTION}", repaired=True),
        *_UNWRAPPED,
    )


MISTRAL = (
    Opening(r"\[TOOL_CALLS\]\s*" + LIST, ObjectReader, r"\]", rf"\s*,\s*{OBJECT}"),
    Opening(r"\[TOOL_CALLS\]\s*" + OBJECT, ObjectReader, "", rf"\s*[,;]?\s*{OBJECT}", repaired=True),
    Opening(r"\[TOOL_CALLS\]\s*(?=[^\s\[{])", NamedReader, "", r"\s*\[TOOL_CALLS\]\s*(?=[^\s\[{])"),
    *_UNWRAPPED,
)
LLAMA = (
    Opening(r"<\|python_tag\|>\s*" + OBJECT, ObjectReader, "", rf"\s*[,;]\s*{OBJECT}"),
    Opening(LINE + OBJECT, BareReader, "", rf"\s*[,;]?\s*{OBJECT}"),
    Opening(FUNCTION, FunctionReader, "", rf"\s*{FUNCTION}", repaired=True),
    *_UNWRAPPED,
)


@dataclass(frozen=True)
class CallFormat:
    """One family's.

    Args:
        name: as the setting ``tool_parser`` has it.
        parser: makes what finds calls in an answer.
        grammar: how calls are enforced; None where they cannot be.
        markers: tokens that must not vanish from an answer's text, special or not.
    """

    name: str
    parser: Callable[[Tools], ToolCallParser]
    grammar: CallGrammar | None = None
    markers: tuple[str, ...] = ()


def _format(name: str, openings: Sequence[Opening], grammar: CallGrammar, *markers: str) -> CallFormat:
    return CallFormat(name, partial(CallScanner, openings=openings), grammar, markers)


_TAGS = ("<tool_call>", "</tool_call>")
HERMES = _format("hermes", _qwen(functions=False), HermesGrammar(), *_TAGS)
OWN = (
    HERMES,
    _format("qwen3_coder", _qwen(functions=True), QwenCoderGrammar(), *_TAGS),
    _format("mistral", MISTRAL, MistralGrammar(), "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    _format("llama", LLAMA, LlamaGrammar(), "<|python_tag|>"),
)
AUTO = "auto"
"""Stands for what the chat template asks for."""

NAMES = (*(one.name for one in OWN), *BORROWED)
"""Of all formats."""


def named(name: str) -> CallFormat:
    """The format of that name."""
    own = {one.name: one for one in OWN}
    return own[name] if name in own else CallFormat(name, partial(borrowed, name), markers=markers(name))


_MARKS = (
    ("minimax_m2", "<minimax:tool_call>"),
    ("gemma4", "<|tool_call>"),
    ("function_gemma", "<start_function_call>"),
    ("longcat", "<longcat_tool_call>"),
    ("glm47", "<arg_key>"),
    ("pythonic", "<|tool_call_start|>"),
    ("pythonic", "<|tool_list_start|>"),
    ("kimi_k2", "<|tool_calls_section_begin|>"),
    ("muse_spark", "<atem:function_calls>"),
    ("minicpm5", '<function name="'),
    ("qwen3_coder", "<function="),
    ("hermes", "<tool_call>"),
    ("mistral", "[TOOL_CALLS]"),
    ("llama", "<|python_tag|>"),
    ("llama", "<|start_header_id|>"),
)
"""What stands in a template of each format; the first one found counts. mlx-lm's tokenizer_utils looks for the same."""


def format_of(template: str) -> CallFormat:
    """The format that a chat template asks the model to write calls in; Hermes' where it knows no tools."""
    if not knows_tools(template):
        return HERMES
    return named(next((name for name, mark in _MARKS if mark in template), HERMES.name))


def knows_tools(template: str) -> bool:
    """Whether a chat template shows tools to the model; if not, the system message does."""
    return "tool" in template
