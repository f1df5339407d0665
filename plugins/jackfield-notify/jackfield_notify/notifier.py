"""Ties it together: events go into the stream and, by the rules, through the outbox to the targets."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from jackfield.errors import InvalidRequestError
from jackfield.hooks import Event
from jackfield_notify.database import Database, StorageError
from jackfield_notify.delivery import Backoff, Courier, Result, Sender
from jackfield_notify.devices import Devices
from jackfield_notify.feed import Feed
from jackfield_notify.metrics import Metrics
from jackfield_notify.notification import Notification
from jackfield_notify.outbox import Message, Outbox
from jackfield_notify.preferences import Preferences
from jackfield_notify.rulebook import Order, Rulebook
from jackfield_notify.settings import ApnsTarget, AppriseTarget, Settings, WebhookTarget
from jackfield_notify.stored import StoredPreferences
from jackfield_notify.targets.apns import ApnsSender
from jackfield_notify.targets.apprise import AppriseSender
from jackfield_notify.targets.webhook import WebhookSender

logger = logging.getLogger(__name__)

OWN_KIND = "notification_dead"
"""Told when a message is given up: in the live stream only, since the targets may be what fails."""

Clock = Callable[[], float]


class Notifier:
    """The plugin at work.

    Args:
        folder: for what has to outlive the server.
        settings: targets, limits, and preferences to begin with.
        metrics: counts what happens.
        emit: tells the server of an event.
        clock: seconds since 1970.
        backoff: how long to wait after failures; by default, as the settings say.

    Raises:
        ConfigurationError: the outbox cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        emit: Callable[[Event], None] = lambda event: None,
        clock: Clock = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.feed = Feed(settings.stream_history, settings.most_streams)
        self._database = Database(folder / "notify.db")
        self.devices = Devices(self._database)
        self.outbox = Outbox(
            self._database,
            most_queued=settings.most_queued,
            keep_delivered=settings.keep_delivered,
            keep_dead=settings.keep_dead,
        )
        self._stored = StoredPreferences(folder / "preferences.json")
        self._emit = emit
        self._clock = clock
        self._backoff = backoff or Backoff(settings.first_retry_seconds, settings.longest_retry_seconds)
        self._rulebook = self._read_rules(self._stored.load() or settings.preferences)
        self._couriers: dict[str, Courier] = {}
        self._running: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- Preferences ---------------------------------------------------------------------------------------------

    @property
    def preferences(self) -> Preferences:
        """Those in force."""
        return self._rulebook.preferences

    def prefer(self, preferences: Preferences) -> None:
        """Put others in force, now and after a restart.

        Raises:
            InvalidRequestError: they name a target that does not exist.
            UnavailableError: they cannot be written.
        """
        if unknown := sorted(preferences.targets() - set(self.settings.targets)):
            known = ", ".join(sorted(self.settings.targets)) or "none yet"
            raise InvalidRequestError(
                f"The rules name the target {unknown[0]!r}, which is not in the server's settings.",
                param="rules",
                code="unknown_target",
                suggestions=(f"Targets are: {known}.", "Add it to [plugins.notify.targets] of the server's TOML file."),
            )
        self._stored.save(preferences)
        self._rulebook = self._read_rules(preferences)

    def forget_preferences(self) -> None:
        """Put those of the TOML file in force again."""
        self._stored.forget()
        self._rulebook = self._read_rules(self.settings.preferences)

    def _read_rules(self, preferences: Preferences) -> Rulebook:
        # Rules that were stored may name targets that have been removed since: they never fit.
        return Rulebook(preferences, self.settings.targets, self.metrics.suppressed)

    # --- Events --------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Forward an event; from any thread but the event loop's, since it waits for the disk."""
        self.feed.publish(event)
        if event.kind == OWN_KIND:
            return
        now = self._clock()
        messages = [
            message for order in self._rulebook.decide(event, now) for message in self._messages(event, order, now)
        ]
        if messages:
            self.outbox.put(messages)
            self._wake()

    def _messages(self, event: Event, order: Order, now: float) -> list[Message]:
        told = Notification.of(event, sound=order.sound, held_back=order.held_back)
        expires = order.due + self.settings.give_up_seconds
        return [
            Message(order.target, told, created=now, due=order.due, expires=expires, address=address)
            for address in self.addresses(order.target)
        ]

    def addresses(self, target: str) -> list[str]:
        """A target's receivers: its devices if it is an app, and otherwise one that needs no address."""
        if not isinstance(self.settings.targets[target], ApnsTarget):
            return [""]
        try:
            return [device.token for device in self.devices.all(target)]
        except StorageError as error:
            logger.warning("The devices of %s cannot be read, and are not told: %s", target, error)
            return []

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Look into the outbox now; on the event loop."""
        for courier in self._couriers.values():
            courier.wake()

    # --- Delivery ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to deliver, with what a run before has left.

        Raises:
            ConfigurationError: a target cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._couriers = {name: self.courier(name) for name in self.settings.targets}
        await asyncio.to_thread(self._take_over)
        self._running = [asyncio.create_task(courier.run()) for courier in self._couriers.values()]

    def _take_over(self) -> None:
        try:
            if left := self.outbox.recover():
                logger.info("%d messages were in flight when the server ended: they are sent again.", left)
            if orphans := self.outbox.bury_orphans(list(self.settings.targets), self._clock()):
                logger.warning("%d messages are for targets that are not in the settings: given up.", orphans)
        except StorageError as error:
            logger.warning("The outbox cannot be used at the moment: %s", error)

    def courier(self, name: str) -> Courier:
        """Who delivers to a target; close its sender when done."""
        return Courier(
            name,
            self.sender(name),
            self.outbox,
            backoff=self._backoff,
            clock=self._clock,
            timeout=self.settings.timeout_seconds,
            heard=self._heard,
        )

    def sender(self, name: str) -> Sender:
        """Who speaks to a target.

        Raises:
            ConfigurationError: its key cannot be used.
        """
        match self.settings.targets[name]:
            case AppriseTarget() as settings:
                return AppriseSender(settings, self.settings.timeout_seconds)
            case WebhookTarget() as settings:
                return WebhookSender(settings, self.settings.timeout_seconds, self._clock)
            case ApnsTarget() as settings:
                return ApnsSender(name, settings, self.devices, self.settings.timeout_seconds, self._clock)

    def _heard(self, message: Message, result: Result, reason: str) -> None:
        self.metrics.attempted(message.target, result)
        if result == "dead":
            title = f"A notification for {message.target!r} could not be delivered: {reason}"
            data = {"target": message.target, "message": message.id, "attempts": message.attempts}
            self._emit(Event(OWN_KIND, "warning", title, request_id=message.notification.request_id, data=data))

    async def stop(self) -> None:
        """Deliver what is due, for a few seconds, and leave the rest for the next run."""
        self.feed.close()
        for courier in self._couriers.values():
            courier.leave()
        if self._running:
            await asyncio.wait(self._running, timeout=self.settings.drain_seconds)
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        for courier in self._couriers.values():
            await courier.sender.close()
        self._couriers, self._running = {}, []

    def close(self) -> None:
        """Close the outbox; nothing works after that."""
        self._database.close()

    # --- Numbers -------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Messages by state, and those that are lost.

        Raises:
            StorageError: the outbox cannot be read.
        """
        return {**self.outbox.counts(), "lost": self.outbox.lost}
