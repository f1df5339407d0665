"""Plugins on the engine's thread, where nothing can be timed out: the engine's watch finds who hangs there."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jackfield.engine.request import GenerationRequest, LogitsProcessor, TokenSampler
from jackfield.hooks.data import RequestInfo
from jackfield.hooks.dispatcher import Check, Dispatcher, Implementation, PluginError
from jackfield.models.device import Device

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn


class EngineHooks:
    """The hooks of the engine's thread, and the functions that plugins put there."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._running: dict[int, tuple[Implementation, float]] = {}
        """Who is at work since when, by the engine's thread."""

    @property
    def wanted(self) -> bool:
        """Whether any plugin has to do with requests there."""
        return self._dispatcher.has("logits_processors") or self._dispatcher.has("make_sampler")

    @property
    def preparing(self) -> list[str]:
        """The plugins that prepare models, with their versions, in the order in which they do."""
        plugins = [implementation.plugin for implementation in self._dispatcher.of("prepare_model")]
        return [f"{plugin.name} {plugin.version}" for plugin in plugins]

    def overdue(self, thread: int | None) -> str | None:
        """What hangs on an engine's thread, if a plugin does; that one is disabled. For the watching thread."""
        running = self._running.get(thread or 0)
        if running is None:
            return None
        implementation, since = running
        limit = self._dispatcher.limit(implementation.hook)
        if time.monotonic() - since <= limit:
            return None
        self._running.pop(thread or 0, None)
        self._dispatcher.failed(implementation, TimeoutError())
        told = f"plugin {implementation.plugin.name} took longer than {limit:g} seconds at {implementation.hook}"
        self._dispatcher.disable(implementation.plugin, f"It held up the engine: {told}.")
        return told

    def prepare_model(self, *, model: "nn.Module", config: Mapping[str, Any], device: Device) -> "nn.Module":
        """The model as the plugins make it.

        Raises:
            UnpreparedError: one of them failed, and may have left the model in pieces; it is disabled.
        """
        for implementation in self._dispatcher.of("prepare_model"):
            try:
                with self._watch(implementation):
                    given = {"model": model, "config": config, "device": device}
                    prepared = self._dispatcher.call_here(implementation, given, _module)
                    model = model if prepared is None else prepared
            except Exception as error:
                self._dispatcher.disable(implementation.plugin, "It failed while it prepared the model.")
                raise UnpreparedError from error
        return model

    def prepare(self, info: RequestInfo, request: GenerationRequest) -> GenerationRequest:
        """The request with what the plugins add to it."""
        added = tuple(self._processors(info))
        sampler = self._sampler(info, request)
        return replace(request, processors=request.processors + added, sampler=sampler or request.sampler)

    def _processors(self, info: RequestInfo) -> Iterator[LogitsProcessor]:
        for implementation in self._dispatcher.of("logits_processors"):
            for processor in self._ask(implementation, {"request": info}, _functions) or ():
                yield self._isolated_processor(implementation, processor)

    def _sampler(self, info: RequestInfo, request: GenerationRequest) -> TokenSampler | None:
        for implementation in self._dispatcher.of("make_sampler"):
            sampler = self._ask(implementation, {"request": info, "sampling": request.sampling}, _function)
            if sampler is not None:
                return self._isolated_sampler(implementation, sampler)
        return None

    def _ask(self, implementation: Implementation, given: Mapping[str, Any], check: Check) -> Any:
        try:
            with self._watch(implementation):
                return self._dispatcher.call_here(implementation, given, check)
        except BaseException:  # counted and logged; an exit must not end the engine
            return None

    def _isolated_processor(self, implementation: Implementation, processor: LogitsProcessor) -> LogitsProcessor:
        def run(tokens: tuple[int, ...], logits: "mx.array") -> "mx.array":
            processed: mx.array | None = guarded(lambda: _evaluated(processor(tokens, logits), logits.shape))
            return logits if processed is None else processed

        guarded = self._guard(replace(implementation, hook="logits_processors: processor"))
        return run

    def _isolated_sampler(self, implementation: Implementation, sampler: TokenSampler) -> TokenSampler:
        def run(logits: "mx.array") -> "mx.array | None":
            found: mx.array | None = guarded(lambda: _token(sampler(logits), logits.shape[-1]))
            return found

        guarded = self._guard(replace(implementation, hook="make_sampler: sampler"))
        return run

    def _guard(self, implementation: Implementation) -> Callable[[Callable[[], Any]], Any]:
        """Runs what a plugin brought for one request, until it fails once; counted apart from the hook itself."""
        failed = False

        def run(work: Callable[[], Any]) -> Any:
            nonlocal failed
            if failed or not implementation.plugin.active:
                return None
            started = time.perf_counter()
            try:
                with self._watch(implementation):
                    result = work()
            except BaseException as error:  # an exit must not end the engine
                failed = True
                self._dispatcher.failed(implementation, error)
                return None
            implementation.plugin.count(implementation.hook, time.perf_counter() - started)
            return result

        return run

    @contextmanager
    def _watch(self, implementation: Implementation) -> Iterator[None]:
        thread = threading.get_ident()
        self._running[thread] = implementation, time.monotonic()
        try:
            yield
        finally:
            self._running.pop(thread, None)


def _functions(found: Any) -> list[Any]:
    return [_function(one) for one in found or ()]


def _function(found: Any) -> Any:
    if found is not None and not callable(found):
        raise PluginError(f"{type(found).__name__} is no function")
    return found


def _module(found: Any) -> Any:
    from mlx import nn  # noqa: PLC0415 - never before the BLAS is chosen

    if found is not None and not isinstance(found, nn.Module):
        raise PluginError(f"prepare_model answered {type(found).__name__}")
    return found


class UnpreparedError(Exception):
    """A plugin failed while it changed the model, which has to be loaded again."""


def _evaluated(processed: Any, shape: tuple[int, ...]) -> "mx.array":
    import mlx.core as mx  # noqa: PLC0415 - never before the BLAS is chosen

    if not isinstance(processed, mx.array) or processed.shape != shape:
        raise PluginError(f"a processor answered {getattr(processed, 'shape', type(processed).__name__)}, not {shape}")
    mx.eval(processed)
    return processed


def _token(found: Any, vocabulary: int) -> "mx.array | None":
    if found is None:
        return None
    import mlx.core as mx  # noqa: PLC0415 - never before the BLAS is chosen

    token = int(found)
    if not 0 <= token < vocabulary:
        raise PluginError(f"a sampler answered token {token} of {vocabulary}")
    return mx.array(token, dtype=mx.int32)
