"""``POST /v1/fim/completions``, Mistral's endpoint for filling in the middle; it answers in the shape of a chat."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from jackfield.protocol.base import JsonObject, Unsupported
from jackfield.protocol.completions import said_as_completion
from jackfield.protocol.sampling import SamplingRequest, Seed


class FimCompletionRequest(SamplingRequest):
    """What stands before and after a gap."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {
        "user": SamplingRequest.ignored_on_purpose["user"],
        "cache_prompt": SamplingRequest.ignored_on_purpose["cache_prompt"],
        "metadata": "Jackfield stores no completions.",
        "prompt_cache_key": "The prefix cache finds common prefixes by itself.",
    }

    prompt: str
    suffix: str | None = None
    """Without it, the answer goes on from the prompt."""
    random_seed: Seed | None = None
    metadata: JsonObject | None = None
    prompt_cache_key: str | None = None
    min_tokens: Annotated[None, Unsupported("Leave it out, or use 'ignore_eos' to go on up to 'max_tokens'.")] = None
    stream_options: Annotated[None, Unsupported("Leave it out: the last chunk always has the usage.")] = None

    def as_completion(self) -> JsonObject:
        """The same in the words of ``/v1/completions``."""
        return said_as_completion(self)

    @model_validator(mode="after")
    def _seed_by_its_name_here(self) -> Self:
        self.seed = self.seed if self.random_seed is None else self.random_seed
        return self
