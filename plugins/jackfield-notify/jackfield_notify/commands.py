"""``jackfield notify``: for people, without a server."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from jackfield.errors import ConfigurationError, JackfieldError
from jackfield.hooks import Event, JsonObject, plugin_data_dir
from jackfield_notify import settings as configuration
from jackfield_notify import webhook
from jackfield_notify.database import StorageError
from jackfield_notify.delivery import Sender
from jackfield_notify.notification import Notification
from jackfield_notify.notifier import Notifier
from jackfield_notify.outbox import Message, State
from jackfield_notify.targets.outcome import DeliveryError

EXAMPLES = """\b
Examples:
  jackfield notify test --config jackfield.toml
  jackfield notify test --config jackfield.toml --target phone
  jackfield notify dead
  jackfield notify retry --all
"""

config_option = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="The TOML file that the server reads."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit_option = click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)


@click.group(epilog=EXAMPLES)
def notify() -> None:
    """Notifications: try the targets, look at what could not be delivered."""


@notify.command(epilog=EXAMPLES)
@config_option
@click.option("--target", "names", multiple=True, help="Only this one; may be given several times.")
@json_option
def test(config: Path | None, names: Sequence[str], as_json: bool) -> None:
    """Send a test message to the targets, now, and tell whether it arrived.

    Rules and quiet hours do not hold for it. The exit status is 1 if a target did not take it.
    """
    with _notifier(config) as notifier:
        chosen = _chosen(notifier, names)
        tell: Callable[[JsonObject], None] = (lambda outcome: None) if as_json else _tell
        outcomes = asyncio.run(_test(notifier, chosen, tell))
    if as_json:
        click.echo(json.dumps(outcomes, indent=2))
    if not all(outcome["delivered"] for outcome in outcomes):
        sys.exit(1)


@notify.command()
@config_option
@json_option
@limit_option
def outbox(config: Path | None, as_json: bool, limit: int) -> None:
    """Show messages that wait to be delivered."""
    _show(config, ("queued", "in_flight"), limit, as_json, "Nothing waits.")


@notify.command()
@config_option
@json_option
@limit_option
def dead(config: Path | None, as_json: bool, limit: int) -> None:
    """Show messages that could not be delivered."""
    _show(config, ("dead",), limit, as_json, "There are no dead letters.")


@notify.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@config_option
@json_option
def retry(ids: Sequence[str], every: bool, config: Path | None, as_json: bool) -> None:
    """Queue dead letters again, by their ids.

    A server that runs sends them within half a minute, otherwise the next one does.
    """
    if every == bool(ids):
        raise click.UsageError("Name dead letters, or say --all.")
    with _notifier(config) as notifier:
        revived = notifier.outbox.revive(None if every else ids, time.time(), notifier.settings.give_up_seconds)
    missing = sorted(set(ids) - set(revived))
    if as_json:
        click.echo(json.dumps({"retried": revived, "missing": missing}, indent=2))
    else:
        click.echo(f"Queued again: {len(revived)}.")
    if missing:
        raise JackfieldError(
            f"There is no dead letter {missing[0]!r}.", suggestions=("List them: jackfield notify dead.",)
        )


@notify.command()
def secret() -> None:
    """Make a secret to sign webhooks with."""
    click.echo(webhook.new_secret())


@contextmanager
def _notifier(config: Path | None) -> Iterator[Notifier]:
    notifier = Notifier(plugin_data_dir("notify"), configuration.load(config))
    try:
        yield notifier
    except StorageError as error:
        raise JackfieldError(
            f"The outbox cannot be used at the moment: {error}.", suggestions=("Try again in a few seconds.",)
        ) from error
    finally:
        notifier.close()


def _chosen(notifier: Notifier, names: Sequence[str]) -> list[str]:
    known = notifier.settings.targets
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"There is no target {name!r}.", suggestions=(f"Targets are: {', '.join(known) or 'none'}.",)
            )
    if not known:
        raise ConfigurationError(
            "There are no targets.",
            suggestions=("Add one to [plugins.notify.targets] of a TOML file.", "Name the file with --config."),
        )
    return list(names) or list(known)


async def _test(notifier: Notifier, names: Sequence[str], tell: Callable[[JsonObject], None]) -> list[JsonObject]:
    outcomes = []
    for name in names:
        sender = notifier.sender(name)
        try:
            receivers: list[str | None] = [*notifier.addresses(name)]
            for address in receivers or [None]:
                outcome = await _attempt(notifier, name, sender, address)
                tell(outcome)
                outcomes.append(outcome)
        finally:
            await sender.close()
    return outcomes


async def _attempt(notifier: Notifier, name: str, sender: Sender, address: str | None) -> JsonObject:
    begun = time.perf_counter()
    error = None
    try:
        if address is None:
            raise DeliveryError("No device has registered yet.")
        async with asyncio.timeout(notifier.settings.timeout_seconds):
            await sender.send(_test_message(name, address))
    except TimeoutError:
        error = f"No answer within {notifier.settings.timeout_seconds:g} seconds."
    except DeliveryError as failure:
        error = str(failure)
    device = f"…{address[-4:]}" if address else None
    seconds = round(time.perf_counter() - begun, 3)
    return {"target": name, "device": device, "delivered": error is None, "error": error, "seconds": seconds}


def _test_message(target: str, address: str) -> Message:
    now = time.time()
    told = Notification.of(Event("test", "info", "This is a test of Jackfield's notifications."))
    return Message(target=target, address=address, notification=told, created=now, due=now, expires=now)


def _tell(outcome: JsonObject) -> None:
    who = " ".join(filter(None, [outcome["target"], outcome["device"]]))
    said = f"delivered in {outcome['seconds']:.2f} s" if outcome["delivered"] else f"failed: {outcome['error']}"
    click.echo(f"{who}: {said}", err=not outcome["delivered"])


def _show(config: Path | None, states: Sequence[State], limit: int, as_json: bool, nothing: str) -> None:
    with _notifier(config) as notifier:
        messages = [message.report() for message in notifier.outbox.messages(*states, limit=limit)]
    if as_json:
        click.echo(json.dumps(messages, indent=2))
        return
    for message in messages:
        click.echo(_line(message))
    if not messages:
        click.echo(nothing)


def _line(message: dict[str, Any]) -> str:
    created = datetime.fromtimestamp(message["created"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    head = f"{message['id']}  {created}  {message['target']}: {message['title']}"
    attempts = f"{message['state']}, {message['attempts']} attempts"
    return "\n".join(filter(None, [head, f"    {attempts}. {message['error'] or ''}".rstrip()]))
