"""What is known of a model's embeddings from its files and its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jackfield.errors import ModelLoadError, UnsupportedError
from jackfield.models.embedding import QWEN3_SIZES, EmbeddingSpec, read_embedding_spec
from jackfield.models.tokenizer import Tokenizer
from model_fixtures import TOKENIZER_FILES, end_texts, tiny_config, write_config

Write = Callable[..., Path]
NETWORK = ("", "sentence_transformers.models.Transformer")
POOLING = ("1_Pooling", "sentence_transformers.models.Pooling")
DENSE = ("2_Dense", "sentence_transformers.models.Dense")


@pytest.fixture
def write(starter: Path, tmp_path: Path) -> Write:
    """A folder without weights."""

    def write(
        *,
        pooling: dict[str, Any] | None = None,
        modules: Any = None,
        tokenizer: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        for name in TOKENIZER_FILES:
            shutil.copy(starter / name, tmp_path / name)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | (tokenizer or {})))
        write_config(tmp_path, tiny_config("qwen3", 49152) | config)
        if pooling is not None:
            (tmp_path / "1_Pooling").mkdir(exist_ok=True)
            (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        if modules is not None:
            listed = [{"path": path, "type": kind} for path, kind in modules]
            (tmp_path / "modules.json").write_text(json.dumps(listed))
        return tmp_path

    return write


def spec(folder: Path, name: str = "model") -> EmbeddingSpec:
    return read_embedding_spec(folder, name, Tokenizer(folder)).with_width(64)


def obstacle(folder: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        spec(folder).check()
    assert caught.value.param == "model"
    assert caught.value.suggestions
    return caught.value.message


def test_a_chat_models_states_are_averaged(write: Write) -> None:
    found = spec(write(model_type="llama"))
    found.check()
    assert (found.width, found.pooling, found.end, found.sizes) == (64, "mean", None, ())


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False, "include_prompt": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
    ids=str,
)
def test_the_file_says_what_is_pooled(write: Write, config: dict[str, Any], pooling: str) -> None:
    folder = write(pooling=config, modules=[NETWORK, POOLING])
    assert spec(folder).pooling == pooling
    end_texts(folder)
    assert spec(folder).pooling == pooling


def test_without_that_file_a_token_that_ends_texts_is_what_counts(write: Write) -> None:
    folder = write()
    assert spec(folder).pooling == "mean"
    end_texts(folder)
    found = spec(folder)
    assert (found.pooling, found.end) == ("last", None)


def test_an_end_that_transformers_leaves_out_is_added(write: Write) -> None:
    """As e5-mistral's tokenizer_config.json says it, and converted GGUF files."""
    found = spec(write(tokenizer={"add_eos_token": True, "eos_token": "<|endoftext|>"}))
    assert (found.pooling, found.end) == ("last", 0)


def test_qwen3_embedding_is_known_by_its_name(write: Write) -> None:
    """Conversions have none of sentence-transformers' files, and early ones not even the token at the end."""
    folder, name = write(), "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ"
    assert spec(folder, name) == EmbeddingSpec(64, "last", 0, QWEN3_SIZES)
    end_texts(folder)
    assert spec(folder, name) == EmbeddingSpec(64, "last", None, QWEN3_SIZES)
    assert spec(write(model_type="llama"), name).pooling == "mean"


@pytest.mark.parametrize(
    ("config", "name", "taken", "refused"),
    [
        ({}, "model", [64], [1, 32, 63, 65]),
        ({}, "Qwen/Qwen3-Embedding-0.6B", [32, 33, 64], [1, 31, 65]),
        ({"is_matryoshka": True}, "model", [1, 64], [65]),
        ({"matryoshka_dimensions": [16, 32]}, "model", [16, 32, 64], [8, 17, 65, 128]),
        ({"matryoshka_dimensions": [16, 128]}, "model", [16, 64], [128]),
    ],
    ids=str,
)
def test_sizes(write: Write, config: dict[str, Any], name: str, taken: list[int], refused: list[int]) -> None:
    found = spec(write(**config), name)
    for dimensions in (None, *taken):
        found.check_size(dimensions)
    for dimensions in refused:
        with pytest.raises(UnsupportedError) as caught:
            found.check_size(dimensions)
        assert caught.value.param == "dimensions"


def test_what_would_be_computed_wrongly_is_refused(write: Write) -> None:
    assert "pools by cls_token" in obstacle(write(pooling={"pooling_mode_cls_token": True}))
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}
    assert "pools by mean_tokens and lasttoken" in obstacle(write(pooling=both))
    assert "'Dense'" in obstacle(write(pooling={"pooling_mode": "mean"}, modules=[NETWORK, POOLING, DENSE]))
    assert "both directions" in obstacle(write(use_bidirectional_attention=True))


def test_a_network_without_hidden_states_is_refused(write: Write) -> None:
    found = read_embedding_spec(folder := write(), "model", Tokenizer(folder)).with_width(None)
    with pytest.raises(UnsupportedError, match="does not give its hidden states"):
        found.check()


def test_damaged_files_are_told(write: Write) -> None:
    folder = write(pooling={"pooling_mode": "mean"})
    (folder / "modules.json").write_text("[{]")
    assert "'modules.json'" in obstacle(folder)
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        spec(folder)
