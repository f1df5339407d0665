"""From a conversation to token ids: what the client sent becomes what the model's chat template expects."""

import json
import re
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from jackfield.engine.request import PromptImage
from jackfield.errors import InvalidRequestError, UnsupportedError
from jackfield.models.conversation import Message
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.content import ImagePart, RefusalPart, TextPart
from jackfield.protocol.messages import AssistantMessage, ToolMessage
from jackfield.protocol.messages import Message as WireMessage
from jackfield.protocol.tools import FunctionTool, ToolCallInHistory
from jackfield.tools.formats import knows_tools
from jackfield.vision.pictures import Pictures
from jackfield.vision.processor import MODEL_TYPES

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


Content = str | list[dict[str, Any]]
"""Of a message, as chat templates take it: text, or parts where there are images among them."""


class Prompt(NamedTuple):
    """What the model is to go on with."""

    tokens: list[int]
    images: tuple[PromptImage, ...] = ()


def chat_prompt(
    request: ChatCompletionRequest, tokenizer: Tokenizer, pictures: Pictures | None = None, limit: int | None = None
) -> Prompt:
    """The conversation, up to where the answer begins.

    Args:
        request: what the client sent.
        tokenizer: the model's.
        pictures: the request's images, for a model that reads them.
        limit: of a prompt with more than twice as many tokens, the first ones will do.

    Raises:
        InvalidRequestError: the template refuses the conversation, or it has parts that the model does not read.
    """
    images = [image for _, image in request.images()]
    continues = bool(request.continue_final_message)
    text = chat_text(request, tokenizer, begins_answer=not continues, continues=continues, images=pictures is not None)
    if pictures is not None and images:
        return Prompt(*pictures.place(text, images, tokenizer))
    # The template has written the special tokens itself.
    return Prompt(tokenizer.encode(text, special=False, limit=limit))


def chat_text(
    request: ChatCompletionRequest,
    tokenizer: Tokenizer,
    *,
    begins_answer: bool = True,
    continues: bool = False,
    images: bool = False,
) -> str:
    """The same as text; it ends as `Tokenizer.render` says.

    With ``images`` there may be some, and each is what the template writes for it.

    Raises:
        InvalidRequestError: as above.
    """
    _check_media(request, images)
    messages = _merge_leading_system([_message(message) for message in request.messages])
    offered = request.tools or () if request.tool_choice != "none" else ()
    tools = [_tool(tool) for tool in offered if not tool.defer_loading]
    if not knows_tools(tokenizer.template):
        messages, tools = _in_hermes_form(messages, tools), []
    if _NINE_CHARACTERS.search(tokenizer.template):
        messages = [_with_short_ids(message) for message in messages]
    render = partial(
        tokenizer.render, tools=tools, options=_options(request), begins_answer=begins_answer, continues=continues
    )
    try:
        return render(messages)
    except InvalidRequestError:
        without = _without_later_system(messages)
        if without == messages:
            raise
        return render(without)


def _check_media(request: ChatCompletionRequest, images: bool) -> None:
    for path, kind in request.media():
        if images and kind == "image_url":
            continue
        hints = ["Leave the part out or describe it in words."]
        if kind == "image_url":
            hints.append(f"Serve a model that reads images: its config.json has model_type {' or '.join(MODEL_TYPES)}.")
        raise UnsupportedError(
            f"{'Text and images' if images else 'Text'} alone can be read here, and {path} is of type {kind!r}.",
            param=path,
            suggestions=tuple(hints),
        )


def _options(request: ChatCompletionRequest) -> dict[str, Any]:
    options = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        options.setdefault("reasoning_effort", request.reasoning_effort)
        options.setdefault("enable_thinking", request.reasoning_effort != "none")
    return options


def _message(message: WireMessage) -> Message:
    result: Message = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message.content),
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


def _content(content: str | Sequence[Any] | None) -> Content:
    """Text, or parts in their order if there are images among them."""
    if content is None or isinstance(content, str):
        return content or ""
    if any(isinstance(part, ImagePart) for part in content):
        return [_part(part) for part in content]
    texts = (part.text for part in content if isinstance(part, TextPart))
    refusals = (part.refusal for part in content if isinstance(part, RefusalPart))
    return "\n".join([*texts, *refusals])


def _part(part: Any) -> dict[str, Any]:
    """As chat templates know it: they look at the type of an image, and perhaps for one of these keys."""
    if isinstance(part, ImagePart):
        return {"type": "image", "image": "", "image_url": ""}
    return {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}


def _joined(contents: Sequence[Content], separator: str) -> Content:
    """Contents one after another; as parts if one of them is."""
    if all(isinstance(content, str) for content in contents):
        return separator.join(map(str, contents))
    parts: list[dict[str, Any]] = []
    for content in contents:
        parts += [{"type": "text", "text": separator}] if parts else []
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


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
    content = _joined([message["content"] for message in messages[:leading]], "\n\n")
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


def _without_later_system(messages: list[Message]) -> list[Message]:
    """Instructions after the first message as a part of what the user says: some templates refuse any."""
    result: list[Message] = []
    for at, message in enumerate(messages):
        if at == 0 or message["role"] != "system":
            result.append(message)
        elif result[-1]["role"] == "user" and isinstance(result[-1]["content"], str):
            result[-1] = {**result[-1], "content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append({**message, "role": "user"})
    return result


def _in_hermes_form(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """For templates that know no tools: tools, calls and results as text, as Hermes and Qwen models write them."""
    result = [_as_text(message) for message in messages]
    if not tools:
        return result
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    introduction = _HERMES_INTRODUCTION.format(tools=listed)
    if result[0]["role"] == "system":
        first = {"role": "system", "content": _joined([result[0]["content"], introduction], "\n\n")}
        return [first, *result[1:]]
    return [{"role": "system", "content": introduction}, *result]


def _as_text(message: Message) -> Message:
    if message["role"] == "tool":
        content = _joined(["<tool_response>", message["content"], "</tool_response>"], "\n")
        return {"role": "user", "content": content}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    said = [message["content"]] if message["content"] else []
    return {**message, "content": _joined([*said, *blocks], "\n")}
