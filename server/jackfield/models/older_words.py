"""What transformers 5 writes into ``config.json``, in the words of transformers 4, which mlx-lm reads.

Otherwise mlx-lm would take its own defaults in their place, and the network would compute something else.
"""

from collections.abc import Mapping
from typing import Any


def older_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta``, ``rope_scaling`` and ``num_experts``, as far as a configuration has them by newer names."""
    told: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    # Some architectures have one for each kind of layer; these are read by their newer name.
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        told["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            told["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if str(config.get("model_type")).startswith("qwen") and "num_local_experts" in config:
        told["num_experts"] = config["num_local_experts"]
    return told
