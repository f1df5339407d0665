"""What is tried out with a model before it serves, since nothing else tells what a network can do."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

Trial = Callable[[], bool]
"""Whether the model can do something; whatever it raises means that it cannot."""

Judge = Callable[[str, Trial], bool]
"""Makes a trial, and says whether it succeeded; told what follows if it does not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has come of a trial."""

    succeeded: bool
    raised: str | None = None
    """What it raised, if it did."""


def attempt(consequence: str, trial: Trial) -> Outcome:
    """Make a trial."""
    try:
        return Outcome(trial())
    except Exception as error:  # whatever a network does with what it takes for an array
        logger.info("%s: %s", consequence, error)
        return Outcome(False, f"{type(error).__name__}: {error}")


def alone(consequence: str, trial: Trial) -> bool:
    """Judge for this process only."""
    return attempt(consequence, trial).succeeded
