"""Log probabilities as all dialects of OpenAI's send them, but for the older one of completions."""

from jackfield.engine.request import TokenEvent
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.logprobs import TokenLogprob, TopLogprob


def token_logprob(token: TokenEvent, top_logprobs: int, tokenizer: Tokenizer) -> TokenLogprob:
    """A token's, with those of this many of the most likely ones."""
    text, data = _token_text(token.id, tokenizer)
    top = []
    # There may be more, for plugins.
    for other, logprob in token.top[:top_logprobs]:
        other_text, other_data = _token_text(other, tokenizer)
        top.append(TopLogprob(token=other_text, logprob=logprob, bytes=other_data))
    return TokenLogprob(token=text, logprob=token.logprob or 0.0, bytes=data, top_logprobs=top)


def _token_text(token: int, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    data = tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace"), list(data)
