"""The public door for plugins: everything they need is imported from here."""

from jackfield.engine.request import LogitsProcessor, SamplingParameters, TokenSampler
from jackfield.events import Event
from jackfield.hooks.data import (
    TOP_K,
    ChatMessage,
    Compressed,
    Confidence,
    Identity,
    JsonObject,
    LogRecord,
    Outcome,
    RecordKind,
    RequestInfo,
    Signal,
    TextDelta,
    TokenEvent,
)
from jackfield.hooks.server import ModelInfo, Server, plugin_data_dir
from jackfield.hooks.specs import (
    Backend,
    ContextTokenizer,
    ModelSource,
    RegisterBackend,
    RegisterParser,
    RegisterSource,
    hookimpl,
)
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece, Thought, ToolCallText
from jackfield.text.tool_calls import ToolCallParser

__all__ = [
    "TOP_K",
    "Backend",
    "CallArguments",
    "CallEnd",
    "CallStart",
    "ChatMessage",
    "Compressed",
    "Confidence",
    "ContextTokenizer",
    "Event",
    "Identity",
    "JsonObject",
    "LogRecord",
    "LogitsProcessor",
    "ModelInfo",
    "ModelSource",
    "Outcome",
    "Piece",
    "RecordKind",
    "RegisterBackend",
    "RegisterParser",
    "RegisterSource",
    "RequestInfo",
    "SamplingParameters",
    "Server",
    "Signal",
    "TextDelta",
    "Thought",
    "TokenEvent",
    "TokenSampler",
    "ToolCallParser",
    "ToolCallText",
    "hookimpl",
    "plugin_data_dir",
]
