"""The plugin, as the server plugs it in."""

import asyncio
import logging
from collections.abc import Sequence

from pydantic import BaseModel

from jackfield.errors import JackfieldError
from jackfield.hooks import ChatMessage, Compressed, ContextTokenizer, JsonObject, Server, hookimpl
from jackfield_compression.compression import Compression
from jackfield_compression.compressor import Compressor, Job
from jackfield_compression.points import Points
from jackfield_compression.report import report
from jackfield_compression.settings import Settings
from jackfield_compression.summary import Summariser

logger = logging.getLogger(__name__)


class Plugin:
    """Makes conversations shorter that are too long for the model."""

    def __init__(self) -> None:
        self._compressor = Compressor(Settings(), Points())
        self._server: Server | None = None

    @hookimpl
    def configure(self) -> type[BaseModel]:
        """The class of the settings."""
        return Settings

    @hookimpl
    def startup(self, server: Server, config: Settings | None) -> None:
        """Begin with these settings."""
        self._server = server
        settings = config or Settings()
        self._compressor = Compressor(
            settings, Points(server.data_dir / "points" if settings.remember_on_disk else None)
        )

    @hookimpl
    async def compress_context(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[JsonObject],
        tokenizer: ContextTokenizer,
        budget: int,
        model: str,
    ) -> Compressed | None:
        """A conversation that fits, or the shortest that can be made of it; None if nothing can be left out."""
        compressor = self._compressor
        try:
            # Counting tokens takes its time, and the event loop has others to serve.
            job = await asyncio.to_thread(compressor.job, messages, tools, tokenizer, model)
            found = await asyncio.to_thread(compressor.decide, job, budget)
            if found and compressor.wants_summary(found):
                found = await self._summarised(found, job, tokenizer, budget, model)
            fitted = await asyncio.to_thread(compressor.fitted, job, found, budget, tokenizer.count)
        except JackfieldError as error:
            # Nothing is wrong with this plugin, so nobody is to count it as a failure of its own.
            logger.warning("A conversation stays as it is: the chat template refuses what is left (%s).", error.code)
            return None
        if not fitted.compression or fitted.compression.is_nothing:
            return None
        told = report(fitted, job)
        logger.info("Compressed a conversation: %s", told)
        return Compressed(fitted.messages, told)

    async def _summarised(
        self, found: Compression, job: Job, tokenizer: ContextTokenizer, budget: int, model: str
    ) -> Compression:
        compressor = self._compressor
        if self._server is None:
            return found
        summariser = Summariser(
            self._server,
            tokenizer,
            model=model,
            room=budget,
            tokens=compressor.summary_tokens(budget - job.around),
            seconds=compressor.settings.summary_seconds,
        )
        text = await summariser.summarise(found, compressor.before(job, found), job.messages)
        return compressor.with_summary(job, found, text)
