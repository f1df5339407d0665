"""Fits conversations that exceed a model's context, instead of failing them."""

from jackfield_compression.plugin import Plugin
from jackfield_compression.settings import Settings

__all__ = ["Plugin", "Settings"]
