"""Checks of a machine, a model and a running server, and what to do about what they find."""
