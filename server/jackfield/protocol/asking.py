"""What requests of all dialects have in common."""

from typing import Annotated

from pydantic import Field, Tag

from jackfield.protocol.base import Integral, JsonObject, RequestBody, Text, by_kind

Priority = Annotated[int, Field(ge=-100, le=100), Integral]
Timeout = Annotated[float, Field(gt=0, le=86400)]
ExtensionWanted = Annotated[
    Annotated[bool, Tag("=boolean")] | Annotated[dict[str, JsonObject], Tag("=object")],
    by_kind({bool: "=boolean", dict: "=object"}, "true, false or an object with options for plugins"),
]


class Asking(RequestBody):
    """Which model is to answer, and how; ``None`` everywhere means that the client did not say."""

    model: Text
    stream: bool | None = None
    priority: Priority | None = None
    """Lower goes first."""
    timeout: Timeout | None = None
    """Seconds from the request's arrival to the end of its answer."""
    jackfield: ExtensionWanted | None = None
    """Send an `Extension` with the answer; an object also says something to plugins, each by its name."""

    @property
    def wants_extension(self) -> bool:
        """Whether the answer is to say how it came about."""
        return self.jackfield is not None and self.jackfield is not False
