"""The tokenizer inside a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``.

What the metadata means is fixed by llama.cpp's ``llama-vocab.cpp``. Its byte-level BPE (``gpt2``) and its
SentencePiece BPE (``llama``) can both be said exactly in the terms of the ``tokenizers`` library.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jackfield.models.gguf import GGUFError, Metadata, damaged

# llama_token_type in llama.h.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SPACE = "\u2581"

# The models' own expressions, as in their tokenizer.json.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

# End-of-turn tokens, which llama.cpp finds by their text whatever the metadata says.
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _default() -> Any:
    """What llama.cpp does for files from before ``tokenizer.ggml.pre``: four expressions, one after another."""
    patterns = (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Names of tokenizer.ggml.pre -> how text is cut before the merges.
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "default": _default,
    "gpt-2": _gpt2,
    "smollm": _digits,
    "qwen2": lambda: _split(QWEN2),
    "deepseek-r1-qwen": lambda: _split(QWEN2),
    "llama-bpe": lambda: _split(LLAMA3),
    "llama3": lambda: _split(LLAMA3),
    "llama-v3": lambda: _split(LLAMA3),
}
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
# llama.cpp normalizes nothing, yet the models do: their own tokenizer.json says NFC.
NFC_NAMES = ("qwen2", "deepseek-r1-qwen")


def write_tokenizer(path: Path, metadata: Metadata, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``; ``path`` is the file, for errors.

    Raises:
        GGUFError: the metadata is damaged, or names a tokenizer that cannot be rebuilt exactly.
    """
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise damaged(path, "its vocabulary has the same token twice")
    tokenizer = _tokenizer(path, metadata, tokens)
    _add_special_tokens(tokenizer, metadata, tokens)
    if adds_bos(metadata):
        _prepend_bos(tokenizer, tokens, _token_id(path, metadata, "bos", tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(metadata, tokens), indent=2, ensure_ascii=False))


def end_token_ids(metadata: Metadata) -> list[int]:
    """The tokens that end an answer, the metadata's own first."""
    tokens = metadata.strings("tokenizer.ggml.tokens")
    named = [metadata.integer(key) for name in ("eos", "eot", "eom") if (key := _id_key(name)) in metadata]
    by_text = {text: index for index, text in enumerate(tokens) if text in END_TOKENS}
    return [index for index in dict.fromkeys((*named, *by_text.values())) if 0 <= index < len(tokens)]


def adds_bos(metadata: Metadata) -> bool:
    """Whether prompts begin with the begin-of-sequence token."""
    spm = metadata.string("tokenizer.ggml.model", "") == "llama"
    default = spm or metadata.string("tokenizer.ggml.pre", "") in LLAMA3_NAMES
    return metadata.boolean("tokenizer.ggml.add_bos_token", default)


def _tokenizer(path: Path, metadata: Metadata, tokens: list[str]) -> Tokenizer:
    model = metadata.string("tokenizer.ggml.model")
    if model == "gpt2":
        return _byte_level(path, metadata, tokens)
    if model == "llama":
        return _sentencepiece(path, metadata, tokens)
    raise _unsupported(path, f"tokenizer model {model!r}", ("gpt2", "llama"))


def _unsupported(path: Path, what: str, supported: Iterable[str]) -> GGUFError:
    return GGUFError(
        f"{path.name} has the {what}, which cannot be rebuilt exactly.",
        suggestions=(
            f"Supported are: {', '.join(supported)}.",
            "Take the model's MLX or Hugging Face folder, which has its own tokenizer.json.",
        ),
    )


def _byte_level(path: Path, metadata: Metadata, tokens: list[str]) -> Tokenizer:
    pre = metadata.string("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise _unsupported(path, f"pre-tokenizer {pre!r}", PRE_TOKENIZERS)
    merges = [_pair(path, merge) for merge in metadata.strings("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(_bpe(path, tokens, merges, ignore_merges=pre in LLAMA3_NAMES))
    if pre in NFC_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _pair(path: Path, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise damaged(path, f"{merge!r} is no merge of two tokens")
    return left, right


def _bpe(path: Path, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # what tokenizers raises is a bare Exception
        raise damaged(path, f"its merges do not fit its vocabulary ({error})") from error


def _sentencepiece(path: Path, metadata: Metadata, tokens: list[str]) -> Tokenizer:
    """SentencePiece joins the neighbours whose union has the best score: merges sorted by score do the same."""
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise damaged(path, "it has not one score for each token")
    types = _types(metadata, tokens)
    merges = _merges_by_score(tokens, scores, types)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    byte_fallback = BYTE in types
    model = _bpe(path, tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    tokenizer = Tokenizer(model)
    prefix = metadata.boolean("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_by_score(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every way to make a token from two others, best token first."""
    known = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    merges = [
        (-score, token[:cut], token[cut:])
        for token, score in known.items()
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


def _types(metadata: Metadata, tokens: list[str]) -> list[int]:
    """One token type for each token; all are normal if the file says nothing."""
    if "tokenizer.ggml.token_type" not in metadata:
        return [NORMAL] * len(tokens)
    types = [int(kind) for kind in metadata.numbers("tokenizer.ggml.token_type")]
    return types + [UNUSED] * (len(tokens) - len(types))


def _add_special_tokens(tokenizer: Tokenizer, metadata: Metadata, tokens: list[str]) -> None:
    """Tokens that are found in the text before anything else; control tokens do not show in decoded text."""
    typed = list(zip(tokens, _types(metadata, tokens), strict=False))
    control = [AddedToken(token, normalized=False, special=True) for token, kind in typed if kind == CONTROL]
    user = [AddedToken(token, normalized=False, special=False) for token, kind in typed if kind == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)


def _prepend_bos(tokenizer: Tokenizer, tokens: list[str], bos: int) -> None:
    template = processors.TemplateProcessing(
        single=[tokens[bos], "$A"],
        pair=[tokens[bos], "$A", tokens[bos], "$B:1"],
        special_tokens=[(tokens[bos], bos)],
    )
    trim = [tokenizer.post_processor] if tokenizer.post_processor else []
    tokenizer.post_processor = processors.Sequence([*trim, template])


def _id_key(name: str) -> str:
    return f"tokenizer.ggml.{name}_token_id"


def _token_id(path: Path, metadata: Metadata, name: str, tokens: list[str]) -> int:
    index = metadata.integer(_id_key(name))
    if not 0 <= index < len(tokens):
        raise damaged(path, f"its {name} token {index} is not in its vocabulary")
    return index


def _config(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
    """``tokenizer_config.json`` in transformers' terms."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": adds_bos(metadata),
    }
    if metadata.boolean("tokenizer.ggml.add_eos_token", False):
        # For embeddings: nothing that is to be gone on with ends so.
        config["add_eos_token"] = True
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if _id_key(name) in metadata and 0 <= (index := metadata.integer(_id_key(name))) < len(tokens):
            config[f"{key}_token"] = tokens[index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata.string("tokenizer.chat_template")
    return config
