"""What requests of all dialects have in common."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, Tag

from jackfield.protocol.base import Integral, JsonObject, RequestModel, Text, by_kind

Priority = Annotated[int, Field(ge=-100, le=100), Integral]
Timeout = Annotated[float, Field(gt=0, le=86400)]
ExtensionWanted = Annotated[
    Annotated[bool, Tag("=boolean")] | Annotated[dict[str, JsonObject], Tag("=object")],
    by_kind({bool: "=boolean", dict: "=object"}, "true, false or an object with options for plugins"),
]


class Asking(RequestModel):
    """Which model is to answer, and how; ``None`` everywhere means that the client did not say."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {}
    """Fields that change nothing here, by name, and why."""

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

    def ignored(self) -> dict[str, str]:
        """The fields of this request that change nothing, and why: to be logged once."""
        return {name: why for name, why in self.ignored_on_purpose.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        value: object = self
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None
