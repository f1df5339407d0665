"""Calls plugins' hooks: one by one, isolated, timed and counted."""

import asyncio
import inspect
import logging
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from jackfield.errors import ConfigurationError, InvalidRequestError
from jackfield.hooks.plugin import Plugin
from jackfield.hooks.specs import PROJECT, Sockets

logger = logging.getLogger(__name__)

FAIL_CLOSED = frozenset({"authenticate"})
"""Hooks that go on being called however often they fail: without them everybody would get in."""


Check = Callable[[Any], Any]
"""Raises what is wrong with an answer, or makes something of it; where calls are awaited, it may be async, too."""


def _anything(answer: Any) -> Any:
    return answer


PLAIN = frozenset(
    {
        "configure",
        "register_commands",
        "register_model_sources",
        "register_tool_parsers",
        "register_backends",
        "register_metrics",
        "token_signals",
        "prepare_model",
        "register_routes",
        "register_middleware",
        "observe_tokens",
        "logits_processors",
        "make_sampler",
    }
)
"""Hooks that nobody awaits."""

QUOTING = frozenset(
    {
        "transform_request",
        "compress_context",
        "select_backend",
        "score_confidence",
        "transform_response",
        "log_record",
        "on_event",
        "observe_tokens",
        "transform_delta",
        "logits_processors",
        "make_sampler",
        "register_backends",
        "register_tool_parsers",
        "register_middleware",
        "authenticate",
    }
)
"""Hooks whose errors may quote prompts, answers or keys: of these only the kind is told, and where it happened."""

MAY_REFUSE = frozenset({"transform_request"})
"""Hooks where an InvalidRequestError is the plugin's answer to the client, and no failure."""


@dataclass(frozen=True, slots=True, eq=False)
class Implementation:
    """One plugin's function for one hook."""

    plugin: Plugin
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    """Those it takes."""
    is_async: bool

    def bind(self, given: Mapping[str, Any]) -> Callable[[], Any]:
        """The call with all that it takes."""
        return partial(self.function, **{name: given[name] for name in self.arguments})


class PluginError(Exception):
    """A plugin answered something that its hook does not allow; the message is the server's own."""


ESCAPES = (Exception, SystemExit, asyncio.CancelledError)
"""What a plugin's function may raise, where nothing else cancels it: the latter two would end more than its call."""


class BusyError(Exception):
    """A plugin's thread had not come to this call when its time was over; it may be healthy all the same."""


class Dispatcher:
    """All implementations of all hooks, in the order they are called.

    Args:
        plugins: those that could be loaded.
        max_failures: so many failures in a row at one hook disable a plugin.
        seconds: how long a hook may take, unless ``limits`` says otherwise.
        limits: the same for single hooks.
    """

    def __init__(
        self, plugins: Iterable[Plugin], *, max_failures: int, seconds: float, limits: Mapping[str, float]
    ) -> None:
        self._max_failures = max_failures
        self._seconds = seconds
        self._limits = limits
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Sockets)
        self._bound: dict[str, tuple[Implementation, ...]] = {}
        self.on_disabled: Callable[[Plugin, str], None] = lambda plugin, reason: None
        """Hears of plugins that were disabled, on whatever thread that happened."""
        for plugin in plugins:
            self._plug_in(plugin)
        self._bind({plugin.name: plugin for plugin in plugins})

    def _plug_in(self, plugin: Plugin) -> None:
        try:
            self._manager.register(plugin.object, plugin.name)
        except Exception as error:  # it has arguments that the hook does not have
            self._refuse(plugin, f"{error}".splitlines()[-1])
            return
        callers = self._manager.get_hookcallers(plugin.object) or []
        known = [caller.name for caller in callers if caller.spec is not None]
        unknown = sorted({caller.name for caller in callers} - set(known))
        if unknown:
            self._refuse(plugin, f"It implements {unknown[0]!r}, which is no hook.")
        elif wrapper := _wrapper(plugin, callers):
            self._refuse(plugin, f"It wraps {wrapper!r}, and hooks cannot be wrapped here.")
        elif unawaited := _unawaited(plugin, callers):
            self._refuse(plugin, f"{unawaited!r} must be a plain function, and it is async.")
        else:
            plugin.hooks = tuple(sorted(known))

    def _refuse(self, plugin: Plugin, why: str) -> None:
        # What it had registered already is never called, since it is not active.
        refuse_open_door(plugin.object, plugin.name, why)
        plugin.errors.append(why)
        plugin.state = "failed"
        logger.error("Plugin %s is left out: %s", plugin.name, why)

    def _bind(self, plugins: Mapping[str, Plugin]) -> None:
        for name in vars(self._manager.hook):
            if name.startswith("_"):
                continue
            caller: pluggy.HookCaller = getattr(self._manager.hook, name)
            # pluggy has the first to be called at the end.
            self._bound[name] = tuple(
                Implementation(
                    plugins[found.plugin_name],
                    name,
                    found.function,
                    tuple(found.argnames),
                    inspect.iscoroutinefunction(found.function),
                )
                for found in reversed(caller.get_hookimpls())
            )

    def of(self, hook: str) -> Iterator[Implementation]:
        """Who implements a hook and is to be called."""
        for implementation in self._bound.get(hook, ()):
            if implementation.plugin.active or hook in FAIL_CLOSED:
                yield implementation

    def has(self, hook: str) -> bool:
        """Whether anybody does."""
        return bool(self._bound.get(hook)) and any(True for _ in self.of(hook))

    def limit(self, hook: str) -> float:
        """Seconds that a call may take."""
        return self._limits.get(hook, self._seconds)

    # --- Calls ---------------------------------------------------------------------------------------------------

    async def call(self, implementation: Implementation, given: Mapping[str, Any], check: Check = _anything) -> Any:
        """What ``check`` makes of its answer, on the event loop or on its plugin's thread.

        Raises:
            InvalidRequestError: it refuses the request, which some hooks may.
            Exception: whatever it or ``check`` raised, or TimeoutError; it has been counted.
        """
        started = time.perf_counter()
        limit = self.limit(implementation.hook)
        try:
            result = check(await self._result(implementation, implementation.bind(given), limit))
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            if implementation.hook in MAY_REFUSE and isinstance(error, InvalidRequestError):
                implementation.plugin.count(implementation.hook, time.perf_counter() - started)
                raise
            hung = implementation.plugin.thread.replace_if_hung()
            if isinstance(error, BusyError) and not hung:
                logger.warning("Plugin %s is too busy for %s.", implementation.plugin.name, implementation.hook)
            else:
                self.failed(implementation, TimeoutError() if hung else error, time.perf_counter() - started)
            raise
        implementation.plugin.count(implementation.hook, time.perf_counter() - started)
        return result

    @staticmethod
    async def _result(implementation: Implementation, work: Callable[[], Any], limit: float) -> Any:
        if implementation.is_async:
            return await _within(limit, asyncio.create_task(_tamed(work())))
        job = implementation.plugin.thread.submit(work, limit)
        try:
            return await _within(limit, asyncio.wrap_future(job))
        except TimeoutError:
            if job.cancel():
                raise BusyError from None
            raise

    def call_and_wait(self, implementation: Implementation, given: Mapping[str, Any], check: Check = _anything) -> Any:
        """What ``check`` makes of the answer of a plain function, waiting for it where we are.

        Raises:
            Exception: whatever it or ``check`` raised, or TimeoutError; it has been counted.
        """
        limit = self.limit(implementation.hook)
        bound = implementation.bind(given)

        def wait() -> Any:
            return check(implementation.plugin.thread.submit(bound, limit).result(limit))

        return self._counted(implementation, wait)

    def call_here(self, implementation: Implementation, given: Mapping[str, Any], check: Check = _anything) -> Any:
        """What ``check`` makes of the answer of a plain function, called where we are: nothing could stop it.

        Raises:
            Exception: whatever it or ``check`` raised; it has been counted.
        """
        bound = implementation.bind(given)
        return self._counted(implementation, lambda: check(bound()))

    def _counted(self, implementation: Implementation, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            result = work()
        except BaseException as error:  # also an exit, which must not end the thread that this runs on
            self.failed(implementation, error, time.perf_counter() - started)
            raise
        implementation.plugin.count(implementation.hook, time.perf_counter() - started)
        return result

    # --- Failures ------------------------------------------------------------------------------------------------

    def failed(self, implementation: Implementation, error: BaseException, seconds: float = 0.0) -> None:
        """A call failed: count it, and disable the plugin when it has been too often. From any thread."""
        told = describe(error, self.limit(implementation.hook), quotes=implementation.hook in QUOTING)
        in_a_row = implementation.plugin.count_failure(implementation.hook, told, seconds)
        logger.warning("Plugin %s failed at %s: %s", implementation.plugin.name, implementation.hook, told)
        logger.debug("This is where:", exc_info=error)
        if in_a_row >= self._max_failures and implementation.hook not in FAIL_CLOSED:
            self.disable(implementation.plugin, f"It failed {in_a_row} times in a row at {implementation.hook}: {told}")

    def disable(self, plugin: Plugin, reason: str) -> None:
        """Call none of its hooks any more. From any thread."""
        if plugin.active:
            plugin.state = "disabled"
            logger.error("Plugin %s is disabled. %s", plugin.name, reason)
            self.on_disabled(plugin, reason)


async def _tamed(work: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result; what would end the loop, or looks like our own cancellation, becomes an error."""
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise PluginError("it was cancelled by itself") from error
    except Exception:
        raise
    except BaseException as error:
        raise PluginError(f"it raised {type(error).__name__}") from error


async def _within(seconds: float, future: "asyncio.Future[Any]") -> Any:
    """Its result, if it comes in time; a coroutine that does not let itself be cancelled is left behind.

    Raises:
        TimeoutError: it does not.
    """
    try:
        await asyncio.wait({future}, timeout=seconds)
        if not future.done():
            raise TimeoutError
        return future.result()
    finally:
        if not future.done():
            future.cancel()
            future.add_done_callback(_hear)


def _hear(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()


def refuse_open_door(found: Any, name: str, why: str) -> None:
    """Whoever lets requests in cannot be left out: then everybody would get in.

    Raises:
        ConfigurationError: ``found``, a plugin or its class, would have let requests in.
    """
    if any(_hook_of(found, attribute) == "authenticate" for attribute in dir(found)):
        raise ConfigurationError(
            f"Plugin {name}, which lets requests in, cannot start: {why}",
            suggestions=("Mend it.", f"Serve everybody without it: --disable-plugin {name}."),
        )


def _hook_of(found: Any, attribute: str) -> str | None:
    """The hook that an attribute of a plugin is marked for."""
    mark = getattr(getattr(found, attribute, None), f"{PROJECT}_impl", None)
    return (mark.get("specname") or attribute) if isinstance(mark, dict) else None


def _unawaited(plugin: Plugin, callers: Iterable[pluggy.HookCaller]) -> str | None:
    for caller in callers:
        for found in caller.get_hookimpls():
            is_async = inspect.iscoroutinefunction(found.function) or inspect.isasyncgenfunction(found.function)
            if found.plugin is plugin.object and caller.name in PLAIN and is_async:
                return caller.name
    return None


def _wrapper(plugin: Plugin, callers: Iterable[pluggy.HookCaller]) -> str | None:
    for caller in callers:
        for found in caller.get_hookimpls():
            if found.plugin is plugin.object and (found.wrapper or found.hookwrapper):
                return caller.name
    return None


def describe(error: BaseException, limit: float, *, quotes: bool = False) -> str:
    """An error in one line; ``quotes`` if its own words may hold somebody's text."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"it took longer than {limit:g} seconds"
    if quotes and not isinstance(error, PluginError | TimeoutError | OverflowError):
        frames = traceback.extract_tb(error.__traceback__)
        where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__}{where}"
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


def expect(result: Any, kind: type[Any] | tuple[type[Any], ...], hook: str) -> Any:
    """The result, if it is what the hook allows.

    Raises:
        PluginError: it is not.
    """
    if not isinstance(result, kind):
        raise PluginError(f"{hook} answered {type(result).__name__}")
    return result
