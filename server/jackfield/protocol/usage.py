"""How many tokens a request took."""

from jackfield.protocol.base import AnswerModel


class PromptTokensDetails(AnswerModel):
    """Of the prompt's tokens, those that came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(AnswerModel):
    """Of the generated tokens, those that the model spent on thinking."""

    reasoning_tokens: int


class Usage(AnswerModel):
    """How many tokens a request took, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> "Usage":
        """Count up."""
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
        )
