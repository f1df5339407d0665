"""A process that puts messages into an outbox until it is killed: ``python notify_crashing.py FOLDER SETTINGS``."""

import json
import sys
from pathlib import Path

import click

from jackfield.hooks import Event
from jackfield_notify.notifier import Notifier
from jackfield_notify.settings import Settings

notifier = Notifier(Path(sys.argv[1]), Settings.model_validate(json.loads(sys.argv[2])))
if sys.argv[3:] == ["in-flight"]:
    notifier.tell(Event("failed", "error", "Event 0."))
    [leased] = notifier.outbox.lease("ops", notifier._clock(), 3600, 1)
    click.echo(leased.id)
    sys.stdin.read()
number = 0
while True:
    notifier.tell(Event("failed", "error", f"Event {number}.", data={"number": number}))
    # Whoever reads this line may rely on the message.
    click.echo(number)
    number += 1
