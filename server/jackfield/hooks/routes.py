"""Routes may lead to backends that plugins bring, so whether they lead to anybody is known when those are."""

import logging

from jackfield.errors import ConfigurationError
from jackfield.hooks.calls import Hooks
from jackfield.settings import Settings
from jackfield.settings.nearest import nearest
from jackfield.settings.upstreams import OWN

logger = logging.getLogger(__name__)


def taken_names(settings: Settings) -> tuple[str, ...]:
    """What no plugin's backend may be called."""
    return (OWN, *settings.upstreams)


def check_routes(settings: Settings, hooks: Hooks) -> None:
    """See that routes lead to somebody, before a model is loaded in vain.

    Raises:
        ConfigurationError: one does not.
    """
    taken = taken_names(settings)
    plugged = hooks.backend_kinds(taken)
    if both := next((name for name in settings.upstreams if name in plugged), None):
        raise ConfigurationError(
            f"An upstream cannot be called {both!r}, as a plugin's backend is.", suggestions=("Give it another name.",)
        )
    known = (*taken, *plugged)
    for name, model in settings.models.items():
        for step in model.route:
            if step.backend not in known:
                _refuse(name, step.backend, known, hooks)


def _refuse(model: str, backend: str, known: tuple[str, ...], hooks: Hooks) -> None:
    message = f"The route of model {model!r} leads to {backend!r}, which there is not."
    if any(plugin.errors for plugin in hooks.plugins):
        # One of them may have brought it; the server does without what plugins do not do.
        logger.error("%s A plugin has failed that may bring it: see jackfield plugins.", message)
        return
    near = nearest(backend, known)
    hint = f"Did you mean {near!r}?" if near else f"Use one of: {', '.join(known)}."
    raise ConfigurationError(
        message,
        suggestions=(hint, f"Or describe it in a table [upstreams.{backend}], or install the plugin that brings it."),
    )
