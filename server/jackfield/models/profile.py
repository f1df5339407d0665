"""What there is to know of a model before anybody asks it anything: how much it reads, and what it can do."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jackfield.models.architecture import from_folder
from jackfield.models.embedding import EmbeddingSpec, read_embedding_spec
from jackfield.models.fim import fill_in_the_middle
from jackfield.models.tokenizer import Tokenizer

Capability = Literal["completions", "chat", "tools", "reasoning", "fill_in_the_middle", "embeddings", "images"]


@dataclass(frozen=True, slots=True)
class Profile:
    """A model, loaded or not."""

    context_length: int
    """Tokens of prompt and answer together."""
    capabilities: tuple[Capability, ...]


def profile(context_length: int, tokenizer: Tokenizer, embedding: EmbeddingSpec, *, images: bool) -> Profile:
    """What is known of a model with that tokenizer."""
    return Profile(context_length, tuple(_capabilities(tokenizer, embedding, images)))


def read_profile(folder: Path, name: str, context_length: int | None) -> Profile:
    """The same of a model that is not loaded; ``context_length`` is the most that it may have.

    Raises:
        ModelLoadError: it cannot be served.
    """
    architecture, tokenizer = from_folder(folder), Tokenizer(folder)
    context = min(context_length or architecture.context_length, architecture.context_length)
    embedding = read_embedding_spec(folder, name, tokenizer)
    return profile(context, tokenizer, embedding, images=architecture.vision is not None)


def _capabilities(tokenizer: Tokenizer, embedding: EmbeddingSpec, images: bool) -> Iterator[Capability]:
    yield "completions"
    if tokenizer.template:
        yield "chat"
        yield "tools"
    if tokenizer.template and tokenizer.thinking is not None:
        yield "reasoning"
    if fill_in_the_middle(tokenizer) is not None:
        yield "fill_in_the_middle"
    if not embedding.obstacle:
        yield "embeddings"
    if images:
        yield "images"
