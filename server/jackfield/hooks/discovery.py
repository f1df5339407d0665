"""Finds the installed plugins, and gives each its settings."""

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from jackfield.errors import ConfigurationError
from jackfield.hooks.calls import Hooks
from jackfield.hooks.dispatcher import Dispatcher, refuse_open_door
from jackfield.hooks.plugin import Plugin
from jackfield.hooks.routes import check_routes
from jackfield.hooks.specs import PROJECT
from jackfield.settings import Settings
from jackfield.settings.nearest import nearest

logger = logging.getLogger(__name__)

SLOW_HOOKS = (
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
    "startup",
    "shutdown",
    "compress_context",
)
"""They may take as long as ``slow_hook_seconds``."""


def discover(settings: Settings) -> Hooks:
    """All installed plugins that are wanted; one that cannot be loaded is left out, and shown as such.

    Raises:
        ConfigurationError: two have the same name, one that was asked for is not there or cannot be loaded, or its
            settings are wrong; a model's route leads to nobody.
    """
    points = [point for point in entry_points(group=PROJECT) if _wanted(point.name, settings)]
    _refuse_duplicates([point.name for point in points])
    _refuse_missing(settings, [point.name for point in entry_points(group=PROJECT)])
    hooks = plug_in([_load(point) for point in points], settings)
    check_routes(settings, hooks)
    return hooks


def discover_commands(settings: Settings, cli: click.Group) -> None:
    """Let all installed plugins add their sub-commands to ``cli``; they need no settings for that."""
    points = [point for point in entry_points(group=PROJECT) if _wanted(point.name, settings)]
    plugins = [_load(point) for point in {point.name: point for point in points}.values()]
    Hooks(plugins, _dispatcher(plugins, settings)).register_commands(cli)


def given(objects: Iterable[tuple[str, Any]], settings: Settings) -> Hooks:
    """These plugins, by name, and no others.

    Raises:
        ConfigurationError: two have the same name, or settings are wrong.
    """
    plugins = [_made(Plugin(name), found) for name, found in objects]
    _refuse_duplicates([plugin.name for plugin in plugins])
    return plug_in(plugins, settings)


def plug_in(plugins: Sequence[Plugin], settings: Settings) -> Hooks:
    """The hooks of these plugins, configured.

    Raises:
        ConfigurationError: see above.
    """
    dispatcher = _dispatcher(plugins, settings)
    for implementation in dispatcher.of("configure"):
        try:
            kind = dispatcher.call_and_wait(implementation, {}, _settings_class)
        except Exception as error:
            refuse_open_door(implementation.plugin.object, implementation.plugin.name, str(error))
            _leave_out(implementation.plugin, error)
        else:
            table = settings.plugins.get(implementation.plugin.name, {})
            implementation.plugin.settings = _configured(implementation.plugin.name, kind, table)
    for plugin in plugins:
        _refuse_useless_settings(plugin, settings)
        _refuse_broken(plugin, settings)
    return Hooks(plugins, dispatcher)


def _dispatcher(plugins: Sequence[Plugin], settings: Settings) -> Dispatcher:
    return Dispatcher(
        [plugin for plugin in plugins if plugin.active],
        max_failures=settings.max_plugin_failures,
        seconds=settings.hook_seconds,
        limits=dict.fromkeys(SLOW_HOOKS, settings.slow_hook_seconds),
    )


def _wanted(name: str, settings: Settings) -> bool:
    asked = settings.only_plugins
    return name not in settings.disabled_plugins and (asked is None or name in asked)


def _load(point: EntryPoint) -> Plugin:
    plugin = Plugin(point.name, version=point.dist.version if point.dist else "")
    try:
        found = point.load()
    except BaseException as error:  # a module may do anything while it is imported, even exit
        if isinstance(error, KeyboardInterrupt):
            raise
        return _leave_out(plugin, error)
    return _made(plugin, found)


def _made(plugin: Plugin, found: Any) -> Plugin:
    try:
        plugin.object = found() if isinstance(found, type) else found
    except Exception as error:
        refuse_open_door(found, plugin.name, str(error))
        return _leave_out(plugin, error)
    return plugin


def _leave_out(plugin: Plugin, error: BaseException) -> Plugin:
    plugin.state = "failed"
    plugin.errors.append(f"{type(error).__name__}: {error}")
    logger.error("Plugin %s cannot be loaded and is left out: %s", plugin.name, plugin.errors[-1])
    logger.debug("This is where:", exc_info=error)
    return plugin


def _settings_class(found: Any) -> type[BaseModel]:
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise TypeError("configure answered something else than a pydantic model's class")
    return found


def _configured(name: str, kind: type[BaseModel], table: dict[str, Any]) -> BaseModel:
    if kind.model_config.get("extra") in (None, "ignore"):
        # What would be dropped in silence is refused, whether or not the author thought of it.
        kind = type(kind.__name__, (kind,), {"model_config": ConfigDict(extra="forbid"), "__module__": kind.__module__})
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise _refusal(name, kind, cast("dict[str, Any]", error.errors(include_url=False)[0])) from None


def _refusal(name: str, kind: type[BaseModel], problem: dict[str, Any]) -> ConfigurationError:
    key = ".".join(map(str, problem["loc"])) or "the table itself"
    if problem["type"] == "extra_forbidden":
        near = _nearest(problem["loc"], kind)
        hint = f"Did you mean {near!r}?" if near else f"Its settings are: {', '.join(sorted(kind.model_fields))}."
        return ConfigurationError(f"Unknown setting {key!r} in [plugins.{name}].", suggestions=(hint,))
    if problem["type"] == "missing":
        return ConfigurationError(
            f"Plugin {name} needs the setting {key!r}.",
            suggestions=(f"Set it under [plugins.{name}].", f"Leave the plugin out: --disable-plugin {name}."),
        )
    return ConfigurationError(
        f"Setting {key!r} in [plugins.{name}] is wrong: {problem['msg']}.", suggestions=("Correct it or leave it out.",)
    )


def _nearest(place: Sequence[int | str], kind: type[BaseModel]) -> str | None:
    """The setting that may have been meant at this place; inside others, one of those that any of them has."""
    if len(place) == 1:
        return nearest(str(place[0]), kind.model_fields)
    inner = kind.model_json_schema().get("$defs", {}).values()
    return nearest(str(place[-1]), {name for one in inner for name in one.get("properties", ())})


def _refuse_duplicates(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"Two plugins are called {name!r}.",
                suggestions=("Uninstall one of them.", f"Leave both out with --disable-plugin {name}."),
            )


def _refuse_missing(settings: Settings, installed: Sequence[str]) -> None:
    asked = {*(settings.only_plugins or ()), *settings.disabled_plugins, *settings.plugins}
    for name in sorted(asked - set(installed)):
        near = nearest(name, installed)
        hint = f"Did you mean {near!r}?" if near else f"Install it: pip install jackfield-{name}."
        raise ConfigurationError(f"There is no plugin {name!r}.", suggestions=(hint, "List them: jackfield plugins."))


def _refuse_useless_settings(plugin: Plugin, settings: Settings) -> None:
    if plugin.active and plugin.settings is None and settings.plugins.get(plugin.name):
        raise ConfigurationError(
            f"Plugin {plugin.name} has no settings, but there are some in [plugins.{plugin.name}].",
            suggestions=("Remove that table.",),
        )


def _refuse_broken(plugin: Plugin, settings: Settings) -> None:
    if plugin.state == "failed" and plugin.name in (settings.only_plugins or ()):
        raise ConfigurationError(
            f"Plugin {plugin.name} was asked for and cannot be loaded: {plugin.errors[-1]}",
            suggestions=("Mend it.", "Do not ask for it in JACKFIELD_PLUGINS."),
        )
