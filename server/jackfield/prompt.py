"""From a conversation to token ids: what the client sent becomes what the model's chat template expects."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from jackfield.errors import UnsupportedError
from jackfield.models.tokenizer import Message, Tokenizer
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.content import RefusalPart, TextPart
from jackfield.protocol.messages import AssistantMessage, ToolMessage
from jackfield.protocol.messages import Message as WireMessage
from jackfield.protocol.tools import FunctionTool, ToolCallInHistory
from jackfield.tools.formats import knows_tools

_HERMES_INTRODUCTION = """\
You can call functions to help with the user's request. The functions, as JSON schemas inside <tools></tools>:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object inside <tool_call></tool_call>:
<tool_call>
{{"name": <function name>, "arguments": <arguments object>}}
</tool_call>"""

_NINE_CHARACTERS = re.compile(r"length\s*(!=|==)\s*9")
"""What Mistral's templates ask of the ids of calls."""


def chat_prompt(request: ChatCompletionRequest, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the conversation, up to where the answer begins.

    Raises:
        InvalidRequestError: the template refuses the conversation, or it has parts that are not text.
    """
    # The template has written the special tokens itself.
    return tokenizer.encode(chat_text(request, tokenizer), special=False)


def chat_text(
    request: ChatCompletionRequest, tokenizer: Tokenizer, *, begins_answer: bool = True, continues: bool = False
) -> str:
    """The same as text; it ends as `Tokenizer.render` says.

    Raises:
        InvalidRequestError: as above.
    """
    for path, kind in request.media():
        raise UnsupportedError(
            f"This model reads text only, and {path} is of type {kind!r}.",
            param=path,
            suggestions=("Leave the part out or describe it in words.", "Serve a model that can read it."),
        )
    messages = _merge_leading_system([_message(message) for message in request.messages])
    tools = [_tool(tool) for tool in request.tools or ()] if request.tool_choice != "none" else []
    if not knows_tools(tokenizer.template):
        messages, tools = _in_hermes_form(messages, tools), []
    if _NINE_CHARACTERS.search(tokenizer.template):
        messages = [_with_short_ids(message) for message in messages]
    return tokenizer.render(messages, tools, _options(request), begins_answer=begins_answer, continues=continues)


def _options(request: ChatCompletionRequest) -> dict[str, Any]:
    options = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        options.setdefault("reasoning_effort", request.reasoning_effort)
        options.setdefault("enable_thinking", request.reasoning_effort != "none")
    return options


def _message(message: WireMessage) -> Message:
    result: Message = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content),
    }
    if message.name:
        result["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.reasoning:
            result["reasoning_content"] = message.reasoning
        if message.tool_calls:
            result["tool_calls"] = [_call(call) for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        result["tool_call_id"] = message.tool_call_id
    return result


def _text(content: str | Sequence[Any] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part.text for part in content if isinstance(part, TextPart))
    refusals = (part.refusal for part in content if isinstance(part, RefusalPart))
    return "\n".join([*texts, *refusals])


def _call(call: ToolCallInHistory) -> dict[str, Any]:
    """A call in the history; templates write the arguments as JSON themselves, so they get the object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _tool(tool: FunctionTool) -> dict[str, Any]:
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def _merge_leading_system(messages: list[Message]) -> list[Message]:
    """Clients send several system messages in a row; most templates allow only one, at the beginning."""
    leading = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if leading < 2:
        return messages
    content = "\n\n".join(message["content"] for message in messages[:leading])
    return [{"role": "system", "content": content}, *messages[leading:]]


def _with_short_ids(message: Message) -> Message:
    """Calls and results with ids that Mistral's templates take: nine letters and digits, the same for the same id."""
    result = dict(message)
    if "tool_calls" in message:
        result["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        result["tool_call_id"] = _short_id(message["tool_call_id"])
    return result


def _short_id(call_id: str) -> str:
    return call_id if re.fullmatch(r"[A-Za-z0-9]{9}", call_id) else sha256(call_id.encode()).hexdigest()[:9]


def _in_hermes_form(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """For templates that know no tools: tools, calls and results as text, as Hermes and Qwen models write them."""
    result = [_as_text(message) for message in messages]
    if not tools:
        return result
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    introduction = _HERMES_INTRODUCTION.format(tools=listed)
    if result[0]["role"] == "system":
        first = {"role": "system", "content": f"{result[0]['content']}\n\n{introduction}"}
        return [first, *result[1:]]
    return [{"role": "system", "content": introduction}, *result]


def _as_text(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    content = [message["content"]] if message["content"] else []
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    return {**message, "content": "\n".join(content + blocks)}
