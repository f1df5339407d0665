"""The functions of a request, under the names by which the model knows them."""

from dataclasses import dataclass

from jackfield.protocol.base import JsonObject
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.protocol.responses.tools import AllowedTools, FunctionChoice, FunctionTool


def visible(namespace: str | None, name: str) -> str:
    """A function's name as the model reads and writes it."""
    return f"{namespace.rstrip('_')}__{name}" if namespace else name


@dataclass(frozen=True, slots=True)
class _Offered:
    namespace: str | None
    function: FunctionTool
    place: str
    """Where it stands in the request."""


class Toolbox:
    """What the model may call.

    Args:
        asked: the request.
    """

    def __init__(self, asked: ResponseRequest) -> None:
        self._choice = asked.tool_choice
        self._all = {
            visible(namespace, one.name): _Offered(namespace, one, place) for place, namespace, one in asked.functions()
        }
        allowed = {one.name for one in self._choice.tools} if isinstance(self._choice, AllowedTools) else None
        self._shown = {name: one for name, one in self._all.items() if allowed is None or one.function.name in allowed}

    def names(self, called: str) -> tuple[str | None, str]:
        """The namespace and the name of a function that the model has called."""
        found = self._all.get(called)
        return (found.namespace, found.function.name) if found else (None, called)

    def tools(self) -> list[JsonObject]:
        """The functions in the words of ``/v1/chat/completions``; with ``allowed_tools`` just those."""
        return [{"type": "function", "function": _function(name, one.function)} for name, one in self._shown.items()]

    def places(self) -> list[str]:
        """Where in the request they stand."""
        return [one.place for one in self._shown.values()]

    def choice(self) -> str | JsonObject | None:
        """Whether and what the model must call, in the same words."""
        if isinstance(self._choice, FunctionChoice):
            wanted = self._choice.name
            name = next(name for name, one in self._all.items() if one.function.name == wanted)
            return {"type": "function", "function": {"name": name}}
        return self._choice.mode if isinstance(self._choice, AllowedTools) else self._choice


def _function(name: str, function: FunctionTool) -> JsonObject:
    return {
        "name": name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }
