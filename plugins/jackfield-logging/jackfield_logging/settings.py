"""What can be set under ``[plugins.logging]``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field

from jackfield_logging.redaction import Rule

RuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


def _rule(pattern: str) -> str:
    Rule.compile("", pattern)
    return pattern


class Settings(BaseModel):
    """All settings, with their defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["auto", "json", "console"] = "auto"
    """One JSON object a line, or lines for a person; ``auto`` is the latter on a terminal only."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below it are left out."""
    file: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """Where lines go; by default to the standard error."""
    max_bytes: ByteSize = ByteSize(50_000_000)
    """Size at which a new file is begun, also written like ``50MB``; 0 for never."""
    backups: Annotated[int, Field(ge=1, le=1000)] = 5
    """Older files that are kept, named ``FILE.1`` (the newest) and so on."""
    server_log: bool = True
    """Whether the server's own messages become lines, too."""
    analysis_chars: Annotated[int, Field(ge=0, le=10_000_000)] = 65_536
    """Characters of a prompt in which code is looked for, the newest messages first; 0 for none."""
    log_prompts: bool = False
    """Whether prompts are logged, redacted."""
    prompt_chars: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Characters of a prompt that are logged, the newest messages first."""
    redact: dict[RuleName, Annotated[str, AfterValidator(_rule)]] = {}
    """More to hide: regular expressions in RE2's syntax, by a name that stands in for what they find."""
