"""Decides how a conversation is made shorter, so that the next turns find its beginning as they left it.

A conversation that is too long is compressed well below the limit. The next turns begin with the same messages: for
these it stays with what was decided, and what comes later is added as it is, until there is too much again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jackfield.hooks import ChatMessage, ContextTokenizer, JsonObject
from jackfield_compression.compression import Compression
from jackfield_compression.conversation import Conversation
from jackfield_compression.draft import Draft
from jackfield_compression.excerpt import Allowance
from jackfield_compression.extractive import extract, squeeze
from jackfield_compression.history import History, chain
from jackfield_compression.points import Points
from jackfield_compression.quotes import SHARE, quote
from jackfield_compression.settings import Settings
from jackfield_compression.sizes import SizeCache, Sizes
from jackfield_compression.window import leave_out_oldest

MARGIN = 0.97
"""Of the budget is used: sizes of single messages add up to the prompt's only nearly."""


Count = Callable[[Sequence[ChatMessage], Sequence[JsonObject]], int]
"""Counts the tokens of a whole prompt."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation after it was made shorter."""

    compression: Compression | None
    messages: Sequence[ChatMessage]
    tokens: int
    """Of the whole prompt, exactly."""


@dataclass(frozen=True, slots=True)
class Job:
    """A conversation that is too long."""

    messages: Sequence[ChatMessage]
    tools: Sequence[JsonObject]
    sizes: Sizes
    links: Sequence[bytes]
    """What stands for its beginnings."""
    each: Sequence[int]
    """Tokens of each message."""
    around: int
    """Tokens of the system prompt and the tools."""

    def tokens(self, compression: Compression | None = None) -> int:
        """Of the whole prompt, nearly; with its beginning made shorter, or as it is."""
        if compression is None:
            return self.around + sum(self.each)
        return self.around + compression.tokens + sum(self.each[compression.length :])


class Compressor:
    """Compresses conversations, and remembers how it did. From any thread.

    Args:
        settings: how.
        points: where it was done before.
    """

    def __init__(self, settings: Settings, points: Points) -> None:
        self.settings = settings
        self.points = points
        self.history = History(settings.remember)
        self._sizes = SizeCache()
        self._allowance = Allowance(settings.head_lines, settings.tail_lines, settings.matching_lines)

    def job(
        self, messages: Sequence[ChatMessage], tools: Sequence[JsonObject], tokenizer: ContextTokenizer, model: str
    ) -> Job:
        """Measure a conversation."""
        sizes = Sizes(tokenizer, model, self._sizes)
        head = Conversation(messages).head
        each = [0] * head + [sizes.of(message) for message in messages[head:]]
        links = chain(messages, model, self.points.key)
        return Job(messages, tools, sizes, links, each, sizes.around(messages[:head], tools))

    def decide(self, job: Job, budget: int) -> Compression | None:
        """How to fit a conversation into ``budget`` tokens, as well as it can be; None if it fits as it is."""
        limit = int(budget * MARGIN)
        found = self._known(job)
        if job.tokens(found) <= limit:
            return found
        self.points.put(job.links[-1], limit - job.around)
        return self._compress(job, len(job.messages), limit - job.around)

    def _known(self, job: Job) -> Compression | None:
        """What was decided about the longest known beginning of a conversation, or what is decided once more."""
        for length in range(len(job.messages), 0, -1):
            if found := self.history.get(job.links[length]):
                return found
            if (limit := self.points.get(job.links[length])) is not None:
                return self._compress(job, length, limit)
        return None

    def _compress(self, job: Job, length: int, limit: int) -> Compression:
        conversation = Conversation(job.messages[:length])
        quotes = self._quote_tokens(limit)
        draft = Draft(conversation, job.sizes, job.each[:length], quotes + self.summary_tokens(limit))
        fixed = sum(job.each[index] for index in conversation.untouched)
        target = fixed + int(self.settings.target * max(0, limit - fixed))
        for strategy in self.settings.strategy:
            if strategy == "extractive":
                extract(draft, target, self._allowance)
            else:
                leave_out_oldest(draft, target, strategy)
        if draft.tokens > limit:
            squeeze(draft, target, self._allowance)
        found = draft.finished(quote(draft, self.settings.matching_lines, quotes) if draft.tokens <= limit else ())
        self.history.put(job.links[length], found)
        return found

    def _quote_tokens(self, limit: int) -> int:
        return max(0, int(SHARE * limit)) if "extractive" in self.settings.strategy else 0

    def summary_tokens(self, limit: int) -> int:
        """The longest a summary may be: no more than a quarter of the room that there is; 0 without summaries."""
        return max(0, min(self.settings.summary_tokens, limit // 4)) if "summary" in self.settings.strategy else 0

    def wants_summary(self, found: Compression) -> bool:
        """Whether something is left out that nobody has tried to summarise."""
        return "summary" in self.settings.strategy and bool(found.dropped) and found.summary is None

    def before(self, job: Job, found: Compression) -> Compression | None:
        """The remembered compression that came before another one of the same conversation."""
        return next(filter(None, map(self.history.get, reversed(job.links[: found.length]))), None)

    def with_summary(self, job: Job, found: Compression, summary: str) -> Compression:
        """Remember a summary. When another request of the same conversation was first, both get that one's."""
        first = self.history.get(job.links[found.length])
        if first and first.dropped == found.dropped and first.summary is not None:
            return first
        summarised = replace(found, summary=summary)
        self.history.put(job.links[found.length], summarised)
        return summarised

    def fitted(self, job: Job, found: Compression | None, budget: int, count: Count) -> Fitted:
        """See that it fits exactly, and if not, compress more, as long as that helps.

        Raises:
            JackfieldError: the chat template refuses the shorter conversation.
        """
        while True:
            messages = found.apply(job.messages) if found else job.messages
            tokens = count(messages, job.tools)
            # Decisions are made by other sizes, so what is too much by these is what is too much in fact.
            size = job.tokens(found)
            better = self.decide(job, size * budget // tokens) if tokens > budget else None
            if better is None or job.tokens(better) >= size:
                return Fitted(found, messages, tokens)
            # There was no time for another summary of it.
            found = self.with_summary(job, better, "") if self.wants_summary(better) else better
