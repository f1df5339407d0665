"""GGUF files: converted exactly, or refused with a reason."""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import regex
import sentencepiece
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

import gguf_files
from gguf_files import BYTES, OTHERS, PRINTABLE, VOCABULARY
from jackfield.errors import ModelLoadError
from jackfield.models import blocks
from jackfield.models.convert import convert
from jackfield.models.device import Device
from jackfield.models.embedding import read_embedding_spec
from jackfield.models.gguf import TENSOR_TYPES
from jackfield.models.loading import load_network
from jackfield.models.tokenizer import Tokenizer as ModelTokenizer
from logits import same_logits
from model_fixtures import random_weights, tiny_config, write_model

ARCHITECTURES = ("llama", "qwen2", "qwen3")
STORED = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
PROMPT = mx.array([[1, 50, 200, 7, 7, 250]])


def small(architecture: str = "qwen2", **changes: Any) -> dict[str, Any]:
    return tiny_config(architecture, len(VOCABULARY), **changes)


def converted(path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    convert(path, folder)
    return folder


def written(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> Path:
    config = config or small()
    return gguf_files.write(folder / "model.gguf", config, random_weights(config), **options)


# Weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
def test_a_converted_network_computes_the_same(architecture: str, kind: Kind, tmp_path: Path, device: Device) -> None:
    """Nothing is lost: these types hold values that 32-bit floats hold exactly."""
    config = small(architecture, tie_word_embeddings=kind != Kind.Q8_0)
    weights = random_weights(config)
    folder = converted(gguf_files.write(tmp_path / "model.gguf", config, weights, kind))
    reference = tmp_path / "reference"
    reference.mkdir()
    left = {name: gguf_files.quantized(w, kind) if w.ndim > 1 else w for name, w in weights.items()}
    write_model(reference, config, left)
    model, _ = load_model(reference)
    logits = load_network(folder, device, dtype="float32").model(PROMPT)
    assert same_logits(logits, model(PROMPT))


def test_a_llama_with_biases(tmp_path: Path, device: Device) -> None:
    """Those of q and k are permuted like their weights."""
    config = small("llama", attention_bias=True)
    weights = random_weights(config)
    random = np.random.default_rng(2)
    for name in [name for name in weights if "_proj.weight" in name and "self_attn" in name]:
        weights[name.replace("weight", "bias")] = random.normal(size=weights[name].shape[0]).astype(np.float32)
    folder = converted(gguf_files.write(tmp_path / "model.gguf", config, weights))
    write_model(tmp_path, config, weights)
    model, _ = load_model(tmp_path)
    assert same_logits(load_network(folder, device).model(PROMPT), model(PROMPT))


def test_a_head_dimension_of_its_own(tmp_path: Path, device: Device) -> None:
    """As in Qwen3, where heads times their dimension is not the hidden size."""
    config = small("qwen3", head_dim=32)
    weights = random_weights(config)
    folder = converted(gguf_files.write(tmp_path / "model.gguf", config, weights))
    write_model(tmp_path, config, weights)
    model, _ = load_model(tmp_path)
    assert same_logits(load_network(folder, device).model(PROMPT), model(PROMPT))


def test_quantized_weights_stay_quantized_on_disk(tmp_path: Path, device: Device) -> None:
    network = load_network(converted(written(tmp_path, kind=Kind.Q4_0)), device, dtype="keep")
    assert network.dtype == "4-bit"


def raw_blocks(kind: str, rows: int, blocks_per_row: int) -> np.ndarray:
    """Random bytes with factors of an ordinary size."""
    random = np.random.default_rng(1)
    size = next(stored.size for stored in TENSOR_TYPES.values() if stored.name == kind)
    raw = random.integers(0, 256, (rows * blocks_per_row, size), dtype=np.uint8)
    factors = random.normal(0.01, 0.002, (len(raw), 2)).astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        raw[:, -2:] = factors[:, :2]
        raw[:, 192:208] = random.integers(-40, 40, (len(raw), 16), dtype=np.int8).view(np.uint8)
    else:
        raw[:, :4] = factors
    return raw.reshape(rows, -1)


@pytest.mark.parametrize(("kind", "tolerance"), [("Q4_K", 1e-3), ("Q5_K", 1e-3), ("Q6_K", 5e-3)])
def test_super_blocks_keep_their_values(kind: str, tolerance: float) -> None:
    """Relative to the largest value: what 16-bit scales, and for Q6_K 8 bits, leave."""
    raw = raw_blocks(kind, 8, 2)
    expected = quants.dequantize(raw, Kind[kind])
    size = next(stored.size for stored in TENSOR_TYPES.values() if stored.name == kind)
    groups = blocks.decode(kind, size, raw)
    bits = blocks.DECODERS[kind].bits
    factors = [mx.array(array.astype(np.float16)).astype(mx.float32) for array in (groups.scales, groups.biases)]
    found = np.array(mx.dequantize(mx.array(blocks.pack(groups.q, bits)), *factors, blocks.GROUP, bits))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_a_group_of_zeros_stays_zero() -> None:
    groups = blocks.decode("Q6_K", 210, np.zeros((1, 210), np.uint8))
    assert not groups.scales.any()
    assert not groups.biases.any()


# Configuration


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_the_configuration_says_what_the_metadata_says(tmp_path: Path) -> None:
    config = small("qwen2", rope_theta=1e6, max_position_embeddings=32768)
    found = config_of(converted(written(tmp_path, config)))
    for key, value in config.items():
        assert found[key] == pytest.approx(value) if isinstance(value, float) else found[key] == value


def test_every_end_token_is_named(tmp_path: Path) -> None:
    """The one of the metadata first; ``<|endoftext|>`` ends Qwen's answers too, though its files do not say so."""
    folder = converted(written(tmp_path))
    expected = [VOCABULARY.index("<|im_end|>"), VOCABULARY.index("<|endoftext|>")]
    assert config_of(folder)["eos_token_id"] == expected
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == expected


def test_yarn_is_carried_over(tmp_path: Path, device: Device) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 4096}
    metadata = {f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()}
    folder = converted(written(tmp_path, metadata=metadata))
    expected = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert config_of(folder)["rope_scaling"] == expected
    assert load_network(folder, device).context_length == 16384


def rope_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them for Llama 3.1, one frequency at a time."""
    found = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (index / head_dim)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def with_rope_factors(path: Path, factors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(gguf_files.NAMES, "rope_freqs", "rope_freqs")
    config = small("llama", rope_theta=500000.0, head_dim=64)
    return gguf_files.write(path / "model.gguf", config, random_weights(config) | {"rope_freqs.weight": factors})


def test_llama_3_scaling_is_read_from_its_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_rope_factors(tmp_path, rope_factors(500000.0, 64, 32.0), monkeypatch)
    scaling = config_of(converted(path))["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 32.0)


def test_other_rope_factors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_rope_factors(tmp_path, np.linspace(1, 8, 32, dtype=np.float32), monkeypatch)
    with pytest.raises(ModelLoadError, match="RoPE factors"):
        converted(path)


# Tokenizers

TRICKY = (
    "Hello, world! It's 2026 and I'VE 123456 things; they'll do.",
    "  leading and   inner\tspace \n\n\n  and lines\r\n\r\n end  ",
    "def f(x: int) -> None:\n    return {'a': x**2, \"b\": 0x1F}  # noqa\n",
    "Ünïcödé, naïve café, 你好，世界, привет, שלום, ١٢٣, 👩‍👩‍👧‍👦 é",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "$100+20=120 a_b_c --flag=1 ^~|<=> …—«»",
    "",
    " ",
    "qux: hello the 123 12345",
)

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
ANY_CASE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)"
NEWER = rf"(?:{ANY_CASE})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The expressions of llama.cpp's llama-vocab.cpp.
LLAMA_CPP = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "qwen2": [NEWER % r"\p{N}"],
    "llama-bpe": [NEWER % r"\p{N}{1,3}"],
}


class LlamaCpp:
    """llama.cpp's byte-level BPE, written from its description: expressions one after another, merges by rank."""

    def __init__(self, tokens: list[str], merges: list[str], special: list[str], pre: str) -> None:
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.special = "|".join(map(regex.escape, special))
        self.patterns = [regex.compile(pattern) for pattern in LLAMA_CPP[pre]]
        self.whole_words = pre == "llama-bpe"
        self.letters = dict(zip([*PRINTABLE, *OTHERS], BYTES, strict=True))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in regex.split(f"({self.special})", text):
            if part in self.ids and regex.fullmatch(self.special, part):
                ids.append(self.ids[part])
            else:
                ids += [token for word in self.words(part) for token in self.word(word)]
        return ids

    def words(self, text: str) -> list[str]:
        words = [text] if text else []
        for pattern in self.patterns:
            words = [piece for word in words for piece in cut(pattern, word)]
        return words

    def word(self, word: str) -> list[int]:
        pieces = [self.letters[byte] for byte in word.encode()]
        if self.whole_words and "".join(pieces) in self.ids:
            return [self.ids["".join(pieces)]]
        while pairs := [pair for pair in pairwise(pieces) if pair in self.ranks]:
            best = min(pairs, key=self.ranks.__getitem__)
            at = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == best)
            pieces[at : at + 2] = ["".join(best)]
        return [self.ids[piece] for piece in pieces]


def cut(pattern: Any, text: str) -> list[str]:
    """The matches and what is between them."""
    ends = [0, *(end for match in pattern.finditer(text) for end in match.span()), len(text)]
    return [text[start:end] for start, end in pairwise(ends) if start < end]


def vocabulary_of(starter: Path) -> dict[str, Any]:
    """The starter's tokens and merges as metadata."""
    stored = json.loads((starter / "tokenizer.json").read_text())
    special = {added["content"] for added in stored["added_tokens"]}
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].__getitem__)
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in stored["model"]["merges"]],
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
    }


@pytest.mark.parametrize("vocabulary", ["starter", "small"])
@pytest.mark.parametrize("pre", LLAMA_CPP)
def test_byte_level_tokens_are_those_of_llama_cpp(pre: str, vocabulary: str, starter: Path, tmp_path: Path) -> None:
    """With 49,152 tokens that look like language, and with few that have merged digits, which the starter has not."""
    metadata = gguf_files.byte_level(pre) | (vocabulary_of(starter) if vocabulary == "starter" else {})
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    config = tiny_config("qwen2", len(tokens), hidden_size=32, intermediate_size=32, head_dim=8, num_hidden_layers=1)
    path = gguf_files.write(tmp_path / "model.gguf", config, random_weights(config), metadata=metadata)
    tokenizer = Tokenizer.from_file(str(converted(path) / "tokenizer.json"))
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    reference = LlamaCpp(tokens, metadata["tokenizer.ggml.merges"], special, pre)
    for text in TRICKY:
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_leave_no_trace_in_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(written(tmp_path)) / "tokenizer.json"))
    ids = tokenizer.encode("<|im_start|>hello").ids
    assert ids[0] == VOCABULARY.index("<|im_start|>")
    assert tokenizer.decode(ids) == "hello"


def test_composed_and_decomposed_letters_are_the_same_to_qwen(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(written(tmp_path)) / "tokenizer.json"))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


@pytest.mark.parametrize("metadata", [{"tokenizer.ggml.add_bos_token": True}, {"tokenizer.ggml.add_bos_token": None}])
def test_prompts_begin_with_the_bos_token_where_the_model_wants_it(metadata: dict[str, Any], tmp_path: Path) -> None:
    """Llama 3's files may say nothing about it: it is what their pre-tokenizer implies."""
    folder = converted(written(tmp_path, metadata=metadata | {"tokenizer.ggml.pre": "llama-bpe"}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = VOCABULARY.index("<|endoftext|>")
    assert tokenizer.encode("hello").ids == [bos, VOCABULARY.index("hello")]
    assert tokenizer.encode("hello", add_special_tokens=False).ids == [VOCABULARY.index("hello")]


def test_a_token_that_ends_texts_is_for_embeddings_alone(tmp_path: Path) -> None:
    folder = converted(written(tmp_path, metadata={"tokenizer.ggml.add_eos_token": True}))
    tokenizer = ModelTokenizer(folder)
    assert not tokenizer.closes_texts
    found = read_embedding_spec(folder, "model", tokenizer)
    assert (found.pooling, found.end) == ("last", tokenizer.end_token)
    assert found.end is not None


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = converted(written(tmp_path, metadata={"tokenizer.ggml.add_bos_token": True}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("hello") == [VOCABULARY.index("<|endoftext|>"), VOCABULARY.index("hello")]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other fox jumps too",
    "one two three four five six seven eight nine ten, said the hello world program",
    "def function(argument): return argument + 1  # the comment of the function",
    "12 34 56 the number is 7890, or was it 123? they will see; it's there.",
)


@pytest.fixture(scope="session")
def spm() -> Any:
    """A SentencePiece BPE model with byte fallback, as Llama 2's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
        split_digits=True, character_coverage=1.0,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(spm: Any) -> dict[str, Any]:
    count = spm.get_piece_size()
    kinds = [2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1 for i in range(count)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [spm.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [float(spm.get_score(i)) for i in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": spm.bos_id(),
        "tokenizer.ggml.eos_token_id": spm.eos_id(),
    }


def test_sentencepiece_tokens_are_those_of_sentencepiece(spm: Any, tmp_path: Path) -> None:
    config = tiny_config("llama", spm.get_piece_size() + -spm.get_piece_size() % 32)
    path = tmp_path / "model.gguf"
    gguf_files.write(path, config, random_weights(config), metadata=spm_metadata(spm), tokenizer=False)
    tokenizer = Tokenizer.from_file(str(converted(path) / "tokenizer.json"))
    for text in (*TRICKY[:4], *TRICKY[5:6], *CORPUS):
        ids = tokenizer.encode(text).ids
        assert ids == [spm.bos_id(), *spm.encode(text)], text
        assert tokenizer.decode(ids) == text


# Refusals


def refused(path: Path) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        converted(path)
    assert caught.value.suggestions
    return caught.value


def altered(folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object], **options: Any) -> Path:
    """A file whose configuration or weights are changed before it is written."""
    config = small()
    weights = random_weights(config)
    change(config, weights)
    return gguf_files.write(folder / "model.gguf", config, weights, **options)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"qwen2.expert_count": 8}, "experts"),
        ({"qwen2.rope.dimension_count": 8}, "attention heads"),
        ({"qwen2.rope.scaling.type": "longrope"}, "RoPE scaling 'longrope'"),
        ({"qwen2.attention.head_count_kv": [2, 2]}, "not an integer"),
        ({"qwen2.block_count": 1 << 31}, "layers"),
        ({"qwen2.block_count": 3}, "missing"),
        ({"qwen2.block_count": 1}, "has not"),
        ({"qwen2.feed_forward_length": 96}, "shape"),
        ({"qwen2.attention.head_count": 0}, "zero"),
        ({"qwen2.embedding_length": None}, "no 'qwen2.embedding_length'"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": [str(i) for i in range(len(VOCABULARY) + 1)]}, "more tokens"),
        ({"tokenizer.ggml.merges": ["the"]}, "no merge"),
        ({"tokenizer.ggml.merges": ["zebra q"]}, "do not fit"),
        ({"tokenizer.ggml.merges": [1, 2]}, "not a list of strings"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 9999}, "bos token"),
    ],
)
def test_what_cannot_be_converted_is_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused(written(tmp_path, metadata=metadata)).message


def test_a_tensor_that_the_architecture_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf_files.NAMES, "extra", "ffn_gate_inp")
    extra = {"model.layers.0.extra.weight": np.zeros((8, 64), np.float32)}
    path = altered(tmp_path, lambda config, weights: weights.update(extra))
    assert "'blk.0.ffn_gate_inp.weight'" in refused(path).message


def test_biases_that_the_architecture_has_not(tmp_path: Path) -> None:
    config = small("llama")
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    path = gguf_files.write(tmp_path / "model.gguf", config, random_weights(config) | bias)
    assert "'blk.0.attn_q.bias'" in refused(path).message


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = altered(tmp_path, lambda config, weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert "'blk.1.ffn_up.weight'" in refused(path).message


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """The last tensor is 4-bit: its last block starts with a 16-bit scale, here infinite."""
    config = small()
    weights = random_weights(config)
    weights["model.embed_tokens.weight"] = weights.pop("model.embed_tokens.weight")
    data = bytearray(gguf_files.write(tmp_path / "model.gguf", config, weights, Kind.Q4_0).read_bytes())
    data[-18:-16] = b"\x00\x7c"
    (tmp_path / "model.gguf").write_bytes(data)
    assert "no numbers" in refused(tmp_path / "model.gguf").message


def test_a_quantization_that_is_not_supported_is_named(tmp_path: Path) -> None:
    """Q2_K is type 10: its number is put where the type of the first tensor stands."""
    data = bytearray(written(tmp_path, kind=Kind.Q4_0).read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert struct.unpack_from("<I", data, at) == (2,)
    struct.pack_into("<I", data, at, 10)
    path = tmp_path / "q2.gguf"
    path.write_bytes(data)
    error = refused(path)
    assert "Q2_K" in error.message
    assert "Q4_K" in error.suggestions[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"<html>not found</html>" * 100,
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"key",
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**62),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 1000,
    ],
)
def test_files_that_are_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    refused(path)


def test_a_download_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "was the download cut off?" in refused(path).message


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small sound file."""
    config = small("llama", num_hidden_layers=1, hidden_size=32, intermediate_size=32, head_dim=8)
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    return gguf_files.write(path, config, random_weights(config), Kind.Q4_0).read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_does_more_than_be_refused(data: st.DataObject, sound: bytes) -> None:
    """Flipped bytes, most of them in the header, and cut ends."""
    damaged = bytearray(sound)
    header = sound.index(b"output_norm") + 1000
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    with tempfile.TemporaryDirectory() as name:
        path, folder = Path(name, "model.gguf"), Path(name, "out")
        path.write_bytes(damaged[:length])
        folder.mkdir()
        try:
            convert(path, folder)
        except ModelLoadError as error:
            assert error.suggestions
