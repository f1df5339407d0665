"""A compression in the making."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

from jackfield.hooks import ChatMessage
from jackfield_compression.compression import Compression, lead
from jackfield_compression.content import Place, plain_text, texts, with_texts
from jackfield_compression.conversation import Conversation, Package
from jackfield_compression.excerpt import question_words
from jackfield_compression.passages import Passage, passages
from jackfield_compression.sizes import Sizes


class Draft:
    """A conversation that strategies take away from, until it is short enough.

    Args:
        conversation: as the client sent it.
        sizes: counts tokens.
        each: tokens of each message.
        reserve: tokens to keep free for quotes and a summary, once messages are left out.
    """

    def __init__(self, conversation: Conversation, sizes: Sizes, each: Sequence[int], reserve: int = 0) -> None:
        self.conversation = conversation
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._sizes = sizes
        self._each = list(each)
        self._reserve = reserve
        self._dropped: set[int] = set()
        self._collapsed: dict[int, ChatMessage] = {}
        self._replaced: dict[int, ChatMessage] = {}
        self._body = sum(self._each[conversation.head :])

    @property
    def tokens(self) -> int:
        """Of what is kept, the system prompt not counted."""
        return self._body + (self.lead_tokens if self._dropped else 0)

    @cached_property
    def lead_tokens(self) -> int:
        """Of what stands for messages that are left out."""
        longest = lead(len(self._each))
        return sum(self._sizes.of(message) for message in longest) + self._reserve

    @cached_property
    def words(self) -> frozenset[str]:
        """Of the question."""
        question = self.conversation.question
        return question_words(plain_text(self.conversation.messages[question])) if question is not None else frozenset()

    @property
    def kept(self) -> list[int]:
        """The messages that are kept, the system prompt not counted."""
        return [index for index in range(self.conversation.head, len(self._each)) if index not in self._dropped]

    @property
    def editable(self) -> list[int]:
        """Those of them that may be made shorter, the oldest first."""
        return [index for index in self.kept if index not in self.conversation.untouched]

    @property
    def left_out(self) -> list[ChatMessage]:
        """The messages that are not kept, as the client sent them."""
        return [self.conversation.messages[index] for index in sorted(self._dropped)]

    def measure(self, text: str) -> int:
        """Tokens of a text."""
        return self._sizes.text(text)

    def passages(self, index: int) -> dict[Passage, str]:
        """What of a message may be made shorter, and how it reads where nothing but repetitions were taken away."""
        message = self._whole(index)
        _, call = self.conversation.answered.get(index, (0, None))
        whole = dict(texts(message))
        return {one: whole[one.place][one.start : one.end] for one in passages(message, call)}

    def collapse(self, index: int, new: Mapping[Passage, str]) -> bool:
        """Put notes in place of passages that are repeated later, for good; tells whether that is shorter."""
        shorter = self._rewritten(index, new)
        if not self._replace(index, shorter):
            return False
        self._collapsed[index] = shorter
        return True

    def shorten(self, index: int, new: Mapping[Passage, str]) -> bool:
        """Put excerpts in place of passages, instead of those that are there; tells whether that is shorter."""
        return self._replace(index, self._rewritten(index, new))

    def _whole(self, index: int) -> ChatMessage:
        return self._collapsed.get(index, self.conversation.messages[index])

    def _rewritten(self, index: int, new: Mapping[Passage, str]) -> ChatMessage:
        whole = dict(texts(self._whole(index)))
        changed: dict[Place, str] = {}
        for passage in sorted(new, key=lambda passage: passage.start, reverse=True):
            text = changed.get(passage.place, whole[passage.place])
            changed[passage.place] = text[: passage.start] + new[passage] + text[passage.end :]
        return with_texts(self._whole(index), changed)

    def _replace(self, index: int, shorter: ChatMessage) -> bool:
        size = self._sizes.of(shorter)
        if size >= self._each[index]:
            return False
        self._body -= self._each[index] - size
        self._each[index] = size
        self._replaced[index] = shorter
        return True

    def drop(self, packages: Sequence[Package]) -> int:
        """Leave packages out; tells how many messages that are."""
        gone = [index for package in packages for unit in package for index in unit.indices]
        self._dropped.update(gone)
        self._body -= sum(self._each[index] for index in gone)
        return len(gone)

    def size(self, package: Package) -> int:
        """Tokens of a package."""
        return sum(self._each[index] for unit in package for index in unit.indices)

    def finished(self, quotes: Sequence[str] = ()) -> Compression:
        """What has been decided, with quotes of what is left out."""
        return Compression(
            length=len(self._each),
            head=self.conversation.head,
            dropped=frozenset(self._dropped),
            replaced={index: new for index, new in self._replaced.items() if index not in self._dropped},
            tokens=self.tokens,
            quotes=tuple(quotes),
            counts={name: dict(counter) for name, counter in self.counts.items()},
        )
