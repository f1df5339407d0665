"""The plugins of the server."""

from typing import ClassVar, Literal

from jackfield.protocol.base import AnswerModel, JsonObject


class PluginReport(AnswerModel):
    """A plugin: what it is, how it is set, and how it does."""

    always: ClassVar = ("object",)

    name: str
    object: Literal["plugin"] = "plugin"
    version: str
    state: Literal["active", "failed", "disabled"]
    """``failed``: it could not be loaded or started; ``disabled``: it failed too often."""
    hooks: list[str]
    """What it implements."""
    settings: JsonObject
    """Secrets are masked."""
    errors: list[str]
    """The last ones."""
    calls: int
    failures: int
    seconds: float
    """Spent in its hooks."""


class PluginList(AnswerModel):
    """All plugins."""

    always: ClassVar = ("object",)

    object: Literal["list"] = "list"
    data: list[PluginReport]
