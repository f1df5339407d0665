"""From Anthropic's words to those of ``/v1/chat/completions``, in which all conversations are held here."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jackfield.api.anthropic.tools import Toolbox, withdrawn
from jackfield.protocol.anthropic.content import (
    AssistantBlock,
    Base64Image,
    DocumentBlock,
    ImageBlock,
    PlainText,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserBlock,
)
from jackfield.protocol.anthropic.messages import AssistantTurn, System, SystemBlock, SystemTurn, Turn, UserTurn
from jackfield.protocol.anthropic.request import MessagesRequest, TokenCountRequest
from jackfield.protocol.anthropic.tools import ToolAdditionBlock, ToolNamed, ToolRemovalBlock
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.content import ContentPart, ImagePart, ImageUrl, TextPart
from jackfield.protocol.formats import JsonSchema, JsonSchemaFormat
from jackfield.protocol.messages import AssistantMessage, Message, SystemMessage, ToolMessage, UserMessage
from jackfield.protocol.tools import CalledFunction, ToolCallInHistory

BILLING = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt with a block of this. It differs from conversation to conversation, if not from
request to request, so that no two prompts would begin alike, and it is not meant for the model."""


def as_chat(asked: TokenCountRequest) -> ChatCompletionRequest:
    """The same request for ``/v1/chat/completions``."""
    tools = Toolbox(asked)
    fields = {
        "model": asked.model,
        "messages": _merged([*_system(asked.system), *_messages(asked.messages, tools)]),
        "chat_template_kwargs": {"enable_thinking": asked.thinks},
        "continue_final_message": asked.continues or None,
        **tools.fields(),
        **_output(asked),
        **(_generation(asked) if isinstance(asked, MessagesRequest) else {}),
    }
    return ChatCompletionRequest(**{name: value for name, value in fields.items() if value is not None})


def _output(asked: TokenCountRequest) -> dict[str, Any]:
    effort = asked.output_config.effort if asked.output_config else None
    fields: dict[str, Any] = {"reasoning_effort": "xhigh" if effort == "max" else effort}
    if asked.schema_wanted is not None:
        schema = JsonSchema(name="answer", schema=asked.schema_wanted)
        fields["response_format"] = JsonSchemaFormat(type="json_schema", json_schema=schema)
    return fields


def _generation(asked: MessagesRequest) -> dict[str, Any]:
    same = ("stream", "temperature", "top_p", "top_k", "priority", "timeout", "jackfield")
    # Whoever wants no answer gets none, but a prompt is not read without a token after it.
    limits = {"max_tokens": max(1, asked.max_tokens), "stop": asked.stop_sequences}
    return {name: getattr(asked, name) for name in same} | limits


# --- Messages --------------------------------------------------------------------------------------------------------


def _system(system: System | None) -> list[Message]:
    blocks = [TextBlock(type="text", text=system)] if isinstance(system, str) else system or ()
    parts = [_text(block.text) for block in blocks if not block.text.startswith(BILLING)]
    return [SystemMessage(role="system", content=_plain(parts))] if parts else []


def _messages(turns: Sequence[Turn], tools: Toolbox) -> Iterator[Message]:
    last_user = max((at for at, turn in enumerate(turns) if isinstance(turn, UserTurn)), default=-1)
    for at, turn in enumerate(turns):
        match turn:
            case UserTurn():
                yield from _user(turn.content, tools)
            case AssistantTurn():
                yield _assistant(turn.content)
            case SystemTurn() if turn.clear_at != "next_user_message" or at > last_user:
                yield SystemMessage(role="system", content=_instructions(turn.content, tools))


def _user(content: str | list[UserBlock], tools: Toolbox) -> Iterator[Message]:
    """What tools answered are messages of their own."""
    if isinstance(content, str):
        yield UserMessage(role="user", content=content)
        return
    parts: list[ContentPart] = []
    for block in content:
        if not isinstance(block, ToolResultBlock):
            parts += _parts(block)
            continue
        if parts:
            yield UserMessage(role="user", content=_plain(parts))
            parts = []
        yield ToolMessage(role="tool", tool_call_id=block.tool_use_id, content=_plain(_result(block, tools)))
    if parts or not any(isinstance(block, ToolResultBlock) for block in content):
        yield UserMessage(role="user", content=_plain(parts))


def _result(block: ToolResultBlock, tools: Toolbox) -> list[ContentPart]:
    failed = [_text("The tool failed:")] if block.is_error else []
    if isinstance(block.content, str):
        return [*failed, _text(block.content)]
    blocks = block.content or ()
    names = [one.tool_name for one in blocks if isinstance(one, ToolReferenceBlock)]
    parts = [part for one in blocks if not isinstance(one, ToolReferenceBlock) for part in _parts(one)]
    return [*failed, *parts, *([_text(tools.shown(names))] if names else [])]


def _parts(block: UserBlock | ResultBlock) -> list[ContentPart]:
    match block:
        case TextBlock():
            return [_text(block.text)]
        case ImageBlock():
            return [_image(block)]
        case DocumentBlock():
            return _document(block)
        case SearchResultBlock():
            return [_text("\n".join([block.title, block.source, *(one.text for one in block.content)]))]
    return []


def _image(block: ImageBlock) -> ImagePart:
    source = block.source
    url = f"data:{source.media_type};base64,{source.data}" if isinstance(source, Base64Image) else source.url
    return ImagePart(type="image_url", image_url=ImageUrl(url=url))


def _document(block: DocumentBlock) -> list[ContentPart]:
    heading = [_text(line) for line in (block.title, block.context) if line]
    if isinstance(block.source, PlainText):
        return [*heading, _text(block.source.data)]
    passages = block.source.content
    if isinstance(passages, str):
        return [*heading, _text(passages)]
    return [*heading, *(part for passage in passages for part in _parts(passage))]


def _assistant(content: str | list[AssistantBlock]) -> AssistantMessage:
    if isinstance(content, str):
        return AssistantMessage(role="assistant", content=content)
    message = AssistantMessage(
        role="assistant", content=_plain([_text(block.text) for block in content if isinstance(block, TextBlock)])
    )
    if thoughts := [block.thinking for block in content if isinstance(block, ThinkingBlock) and block.thinking]:
        message.reasoning_content = "\n".join(thoughts)
    if calls := [_call(block) for block in content if isinstance(block, ToolUseBlock)]:
        message.tool_calls = calls
    return message


def _call(block: ToolUseBlock) -> ToolCallInHistory:
    function = CalledFunction(name=block.name, arguments=json.dumps(block.input, ensure_ascii=False))
    return ToolCallInHistory(id=block.id, type="function", function=function)


def _instructions(content: str | list[SystemBlock] | None, tools: Toolbox) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_instruction(block, tools) for block in content)


def _instruction(block: SystemBlock, tools: Toolbox) -> str:
    match block:
        case ToolAdditionBlock():
            name = block.tool.name if isinstance(block.tool, ToolNamed) else block.tool.definition.name
            return tools.shown([name])
        case ToolRemovalBlock():
            return withdrawn(block.tool.name)
    return block.text


def _merged(messages: Iterable[Message]) -> list[Message]:
    """What the user says in several messages is one turn, as many templates want it."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if isinstance(message, UserMessage) and isinstance(last, UserMessage):
            # In place: there may be thousands, and each would copy those before it.
            last.content = _in_parts(last.content)
            last.content += _in_parts(message.content)
        else:
            merged.append(message)
    return merged


def _in_parts(content: str | list[ContentPart]) -> list[ContentPart]:
    return [_text(content)] if isinstance(content, str) else content


def _plain(parts: Sequence[ContentPart]) -> str | list[ContentPart]:
    """One text as what it is, and no parts as an empty one."""
    if not parts:
        return ""
    only = parts[0]
    return only.text if len(parts) == 1 and isinstance(only, TextPart) else list(parts)


def _text(text: str) -> TextPart:
    return TextPart(type="text", text=text)
