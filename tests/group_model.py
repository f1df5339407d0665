"""A random network that can be divided among two and among three, by layers and within them."""

from pathlib import Path

from model_fixtures import TOKENIZER_FILES, _copy, random_weights, tiny_config, write_model

SHARP = 8.0
"""With logits so far apart a token is not another one because of a rounding error."""


def write_group_model(starter: Path, folder: Path, seed: int = 0) -> Path:
    """A Qwen2 network with the starter's tokenizer and template; returns the folder."""
    folder.mkdir(parents=True)
    _copy(starter, folder, TOKENIZER_FILES)
    config = tiny_config(
        "qwen2",
        49152,
        hidden_size=192,
        head_dim=32,
        intermediate_size=384,
        num_attention_heads=6,
        num_key_value_heads=6,
        num_hidden_layers=6,
        tie_word_embeddings=False,
        eos_token_id=2,
    )
    weights = random_weights(config, seed)
    weights["lm_head.weight"] *= SHARP
    write_model(folder, config, weights)
    return folder
