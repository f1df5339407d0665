"""The turn of whoever runs this server: a model, a group of processes or a setting is wrong."""

from typing import ClassVar

from jackfield.errors.base import Category, JackfieldError


class ModelLoadError(JackfieldError):
    """A model cannot be served; the message says why and the suggestions what to do."""

    code = "model_load_error"
    category: ClassVar[Category] = "model"
    remedies: ClassVar[tuple[str, ...]] = ("See what jackfield doctor MODEL says.",)


class TemplateLimitError(JackfieldError):
    """A model's chat template takes more time or memory than it may."""

    code = "template_limit"
    category: ClassVar[Category] = "model"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The model's chat template takes more than {seconds:g} seconds, or too much memory for this conversation.",
            param="messages",
            suggestions=(
                "Send a shorter conversation.",
                "Look at the model's chat_template.",
            ),
        )


class GroupError(JackfieldError):
    """The processes that run a model together are not all there, or do not fit together."""

    code = "group_error"
    category: ClassVar[Category] = "model"
    remedies: ClassVar[tuple[str, ...]] = (
        "See that all processes of the group run, with the same versions and settings: docs/scale.md.",
        "Look at the other processes' logs.",
    )


class GroupLostError(GroupError):
    """The group has not come together, or has fallen apart; it may come together again."""

    code = "group_lost"
    exit_status: ClassVar[int] = 75
    """EX_TEMPFAIL of BSD's sysexits.h."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            suggestions=(
                "Wait: all processes begin anew by themselves.",
                "If it goes on, see that all of them run and that their machines reach each other.",
            ),
        )


class ConfigurationError(JackfieldError):
    """A setting is wrong."""

    code = "configuration_error"
    category: ClassVar[Category] = "configuration"
    remedies: ClassVar[tuple[str, ...]] = ("See what jackfield config show says.",)
