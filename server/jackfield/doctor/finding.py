"""What a check has found."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Column, Table
from rich.text import Text

from jackfield.errors import JackfieldError

Verdict = Literal["ok", "warning", "failure", "skipped"]

MARKS: Mapping[Verdict, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failure": ("FAILED", "bold red"),
    "skipped": ("skipped", "dim"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check, and how it went."""

    check: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    told: str
    """What was seen, in a sentence."""
    advice: tuple[str, ...] = ()
    figures: Mapping[str, float | int | str | None] = field(default_factory=dict)
    """The same in numbers, for programs."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "advice": list(self.advice), "figures": dict(self.figures)}


def ok(check: str, told: str, **figures: float | str | None) -> Finding:
    """All is well."""
    return Finding(check, "ok", told, figures=figures)


def warning(check: str, told: str, *advice: str, **figures: float | str | None) -> Finding:
    """It works, and could be better."""
    return Finding(check, "warning", told, advice, figures)


def failure(check: str, told: str, *advice: str, **figures: float | str | None) -> Finding:
    """It does not work."""
    return Finding(check, "failure", told, advice, figures)


def skipped(check: str, why: str) -> Finding:
    """It could not be looked at."""
    return Finding(check, "skipped", why)


def careful(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What ``look`` finds; that it fails is a finding too, so that the other checks go on."""
    try:
        yield from look()
    except JackfieldError as error:
        yield Finding(check, "failure", error.message, error.suggestions)
    except Exception as error:
        yield failure(check, f"The check itself failed: {type(error).__name__}: {error}")


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything does not work."""
    return any(finding.verdict == "failure" for finding in findings)


def table(findings: Iterable[Finding]) -> Table:
    """For people: a line for each, and what to do under it."""
    shown = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(), padding=(0, 2))
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        told = Text(finding.told)
        for advice in finding.advice:
            told.append(f"\n- {advice}", "yellow")
        shown.add_row(Text(mark, style), Text(finding.check, "bold"), told)
    return shown
