"""Says of every answer how far it can be trusted, from the model's own token probabilities."""

from jackfield_confidence.plugin import Plugin
from jackfield_confidence.settings import Settings

__all__ = ["Plugin", "Settings"]
