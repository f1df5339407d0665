"""Settings that belong together, by a name: a model, and what it needs to run well in so much memory.

What each of them takes is worked out in tests/test_presets.py, and written down in docs/models.md.
"""

from collections.abc import Mapping
from typing import Any

from jackfield.errors import ConfigurationError
from jackfield.settings.nearest import nearest
from jackfield.settings.origin import Layer, Origin

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-coder-32b": {
        "model": "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
        "context_length": 32768,
        "kv_bits": 8,
        "memory_limit": "25GB",
    },
    "qwen3-coder-30b": {
        "model": "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit",
        "context_length": 65536,
        "kv_bits": 8,
        "memory_limit": "25GB",
    },
    "qwen2.5-coder-14b": {
        "model": "mlx-community/Qwen2.5-Coder-14B-Instruct-4bit",
        "context_length": 32768,
        "kv_bits": 8,
        "memory_limit": "14GB",
    },
    "qwen2.5-coder-7b": {
        "model": "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit",
        "context_length": 32768,
        "kv_bits": 8,
        "memory_limit": "8GB",
    },
}
"""Those that need most memory first."""


def from_preset(name: str) -> Layer:
    """The settings of a preset.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        hint = f"Did you mean {near!r}?" if near else f"There are: {', '.join(PRESETS)}."
        raise ConfigurationError(f"There is no preset {name!r}.", suggestions=(hint,))
    return {setting: (value, Origin("preset", name)) for setting, value in PRESETS[name].items()}
