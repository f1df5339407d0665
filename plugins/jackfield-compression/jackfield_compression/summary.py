"""Has the served model summarise what is left out."""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jackfield.errors import JackfieldError
from jackfield.hooks import ChatMessage, ContextTokenizer, Server
from jackfield_compression.compression import Compression
from jackfield_compression.content import arguments, calls, plain_text
from jackfield_compression.excerpt import Allowance, excerpt

logger = logging.getLogger(__name__)

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_AROUND = 200
"""Tokens for the instructions and for what the template adds."""
_LINES = Allowance(16, 16, 0)

_INSTRUCTIONS = """\
Below is the earlier part of a conversation between a user and an assistant who uses tools. Summarise it for the \
assistant, who has to carry on without it. Keep names, numbers, file paths, decisions, what was done and what is still \
to do. Write at most {words} words, and nothing but the summary.

{text}"""


@dataclass(frozen=True, slots=True)
class Summariser:
    """Asks a model for summaries."""

    server: Server
    tokenizer: ContextTokenizer
    model: str
    room: int
    """Tokens of the longest prompt that the model takes."""
    tokens: int
    """The longest that a summary may be."""
    seconds: float
    """The longest to wait for it."""

    async def summarise(
        self, compression: Compression, earlier: Compression | None, messages: Sequence[ChatMessage]
    ) -> str:
        """A summary of what ``compression`` leaves out; empty if the model gives none in time.

        Args:
            compression: what was decided.
            earlier: the compression before it; its summary stands for what it left out.
            messages: the conversation.
        """
        prompt = self._prompt(compression, earlier, messages)
        try:
            async with asyncio.timeout(self.seconds):
                said = await self.server.complete(
                    [{"role": "user", "content": prompt}], model=self.model, max_tokens=self.tokens
                )
        except (JackfieldError, TimeoutError) as error:
            logger.warning("There is no summary, only a note of what was left out: %s", type(error).__name__)
            return ""
        return _THOUGHTS.sub("", said).strip()

    def _prompt(self, compression: Compression, earlier: Compression | None, messages: Sequence[ChatMessage]) -> str:
        summary = (earlier and earlier.summary) or ""
        known = earlier.dropped if earlier and summary else frozenset()
        before = f"Summary of what came before:\n{summary}\n\n" if summary else ""
        room = self.room - self.tokens - _AROUND - len(self.tokenizer.encode(before))
        new = [messages[index] for index in sorted(compression.dropped - known)]
        text = before + _transcript(new, self.tokenizer, room)
        return _INSTRUCTIONS.format(words=self.tokens // 2, text=text)


def _transcript(messages: Sequence[ChatMessage], tokenizer: ContextTokenizer, room: int) -> str:
    """What was said, shortened until it fits; of what is too long even so, the end."""
    lines = _LINES
    while True:
        text = "\n\n".join(_told(message, lines) for message in messages)
        tokens = tokenizer.encode(text)
        if len(tokens) <= room:
            return text
        if not lines:
            return tokenizer.decode(tokens[len(tokens) - max(room, 0) :])
        lines = lines.halved()


def _told(message: ChatMessage, lines: Allowance) -> str:
    said = [excerpt(text, lines, ()) for text in (plain_text(message), *_called(message)) if text]
    return f"{message.get('role')}: " + "\n".join(said)


def _called(message: ChatMessage) -> Iterator[str]:
    for call in calls(message):
        given = "\n".join(f"{key}: {value}" for key, value in arguments(call).items())
        yield f"(calls {(call.get('function') or {}).get('name')})\n{given}"
