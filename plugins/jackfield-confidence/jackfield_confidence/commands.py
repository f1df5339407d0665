"""``jackfield confidence``: weights for a model, from graded answers."""

import json
from collections.abc import Iterable
from pathlib import Path

import click

from jackfield.errors import NotFoundError
from jackfield.hooks import plugin_data_dir
from jackfield_confidence.calibration import Calibration, Quality
from jackfield_confidence.calibration import calibrate as fit
from jackfield_confidence.factors import NAMES
from jackfield_confidence.graded import read
from jackfield_confidence.store import Store
from jackfield_confidence.weights import DEFAULT

NAME = "confidence"

CALIBRATE_EPILOG = """\b
A line of FILE is an answer that you have graded:
  {"model": "starter", "factors": {"weakest": 0.31, "news": -1.2, ...}, "correct": true}
"factors" is what the answer carried as jackfield.choices[i].confidence.confidence.factors, when the request said
"jackfield": true. Other keys are not looked at.
\b
Examples:
  jackfield confidence calibrate graded.jsonl
  jackfield confidence calibrate graded.jsonl --model mlx-community/Qwen2.5-Coder-7B-Instruct-4bit
  jackfield confidence calibrate graded.jsonl --dry-run --json
\b
Exit status: 0 when the weights are stored (or shown, with --dry-run), 1 when FILE will not do, 2 for wrong usage.
A server that is running takes them up when it is started again.
\b
Keys of --json: model, fitted, answers, right, intercept, slopes, before, after (auroc, calibration_error, brier,
log_loss), and file, which is null with --dry-run.
"""
SHOW_EPILOG = """\b
Examples:
  jackfield confidence show
  jackfield confidence show starter --json
\b
Exit status: 0, or 1 when MODEL has no weights of its own.
"""
FORGET_EPILOG = """\b
Example:
  jackfield confidence forget starter
\b
Exit status: 0, or 1 when MODEL has no weights of its own.
"""
AS_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group()
def confidence() -> None:
    """Fit confidence scores to a model, and look at what was fitted."""


@confidence.command(epilog=CALIBRATE_EPILOG)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Whose answers they are.  [default: the only one in FILE]")
@click.option("--dry-run", is_flag=True, help="Store nothing.")
@AS_JSON
def calibrate(file: Path, model: str | None, dry_run: bool, as_json: bool) -> None:
    """Fit the weights of a model's scores to the graded answers in FILE, and store them."""
    graded = read(file, model)
    found = fit(graded.model, graded.answers)
    stored = None if dry_run else _store().save(found)
    if as_json:
        click.echo(json.dumps(found.model_dump(mode="json") | {"file": str(stored) if stored else None}))
        return
    _print([*_described(found), *_advice(found)])
    if graded.others:
        click.echo(f"{graded.others} answers of other models were passed over.")
    click.echo(f"Stored in {stored}." if stored else "Nothing was stored.")


@confidence.command(epilog=SHOW_EPILOG)
@click.argument("model", required=False)
@AS_JSON
def show(model: str | None, as_json: bool) -> None:
    """Show the weights of MODEL, or of all models that have some of their own."""
    calibrations = _store().all()
    if model is not None:
        if model not in calibrations:
            raise _unknown(model, calibrations)
        calibrations = {model: calibrations[model]}
    if as_json:
        click.echo(json.dumps([found.model_dump(mode="json") for found in calibrations.values()]))
        return
    for found in calibrations.values():
        _print(_described(found))
    if not calibrations:
        click.echo("No model has weights of its own: all are scored with the default ones.")


@confidence.command(epilog=FORGET_EPILOG)
@click.argument("model")
def forget(model: str) -> None:
    """Remove the weights of MODEL, so that the default ones are used again."""
    store = _store()
    if not store.forget(model):
        raise _unknown(model, store.all())
    click.echo(f"{model} is scored with the default weights when the server is started again.")


def _store() -> Store:
    return Store(plugin_data_dir(NAME))


def _unknown(model: str, known: Iterable[str]) -> NotFoundError:
    there = ", ".join(known)
    suggestion = f"There are some for: {there}." if there else "Make some: jackfield confidence calibrate FILE."
    return NotFoundError(f"{model} has no weights of its own.", suggestions=(suggestion,))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _described(found: Calibration) -> list[str]:
    return [
        f"{found.model}: {found.answers} answers, {found.right} right, fitted {found.fitted:%Y-%m-%d %H:%M} UTC",
        "",
        f"  {'weight':<12} {'default':>8} {'fitted':>8}",
        f"  {'(constant)':<12} {DEFAULT.intercept:8.2f} {found.intercept:8.2f}",
        *(f"  {name:<12} {DEFAULT.slopes.get(name, 0):8.2f} {found.slopes[name]:8.2f}" for name in NAMES),
        "",
        f"  {'quality':<18} {'default':>8} {'fitted':>8}",
        *(f"  {field:<18} {_of(found.before, field)} {_of(found.after, field)}" for field in Quality.model_fields),
        "",
    ]


def _of(quality: Quality, field: str) -> str:
    return f"{getattr(quality, field):8.3f}"


def _advice(found: Calibration) -> list[str]:
    if found.after.log_loss < found.before.log_loss:
        return []
    return [
        "The fitted weights are no better than the default ones on answers that they have not seen: grade more.",
        "",
    ]
