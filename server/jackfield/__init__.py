"""Jackfield: an OpenAI-compatible model server for one's own machine, on MLX."""

from importlib.metadata import version

__version__ = version("jackfield")
