"""What a response says again of its request."""

from jackfield.engine.request import SamplingParameters
from jackfield.protocol.base import JsonObject
from jackfield.protocol.responses.answer import ReasoningEcho, TextEcho
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.protocol.responses.tools import FunctionTool, NamespaceTool


def echo(asked: ResponseRequest, sampling: SamplingParameters) -> JsonObject:
    """Fields of a `Response`: what the client said, and where it did not say, what held.

    Args:
        asked: the request.
        sampling: what the engine was told.
    """
    return {
        "previous_response_id": asked.previous_response_id,
        "instructions": asked.instructions,
        "metadata": asked.metadata or {},
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "tools": [_tool(tool) for tool in asked.tools or () if isinstance(tool, FunctionTool | NamespaceTool)],
        "tool_choice": _tool_choice(asked),
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "text": _text(asked),
        "reasoning": ReasoningEcho(effort=asked.reasoning.effort if asked.reasoning else None, summary=asked.summary),
        "truncation": asked.truncation or "disabled",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": asked.top_logprobs or 0,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "prompt_cache_key": asked.prompt_cache_key,
        "safety_identifier": asked.safety_identifier,
        "user": asked.user,
    }


def _tool(tool: FunctionTool | NamespaceTool) -> JsonObject:
    head = {"type": tool.type, "name": tool.name, "description": tool.description}
    if isinstance(tool, NamespaceTool):
        return head | {"tools": [_tool(function) for function in tool.tools]}
    return head | {"parameters": tool.parameters, "strict": tool.strict}


def _tool_choice(asked: ResponseRequest) -> str | JsonObject:
    choice = asked.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _text(asked: ResponseRequest) -> TextEcho:
    wanted = asked.text.format if asked.text else None
    shape = wanted.model_dump(by_alias=True, exclude_unset=True) if wanted else {"type": "text"}
    return TextEcho(format=shape, verbosity=(asked.text.verbosity if asked.text else None) or "medium")
