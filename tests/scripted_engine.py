"""The real application over an engine that says what it is told to: for what a real one says seldom."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from jackfield.app import create_app
from jackfield.engine.request import CacheUse, EngineEvent, FinishEvent, GenerationRequest, StartEvent, TokenEvent
from jackfield.engine.statistics import Statistics
from jackfield.engine.thread import Deliver
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings

Script = list[list[EngineEvent]]
"""What a request gets, step by step."""


@dataclass
class ScriptedEngine:
    """Answers each request with the next of its scripts."""

    scripts: list[Script] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    state: str = "ready"
    trouble: str | None = None
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def admit(self, request_ids: Sequence[str]) -> None:
        assert len(request_ids) <= len(self.scripts)

    def submit(self, request: GenerationRequest, deliver: Deliver) -> None:
        self.requests.append(request)
        for events in self.scripts.pop(0):
            asyncio.get_running_loop().call_soon(deliver, events)

    def cancel(self, request_ids: Iterable[str]) -> None:
        pass


@dataclass
class Stage:
    """A server that answers with scripts."""

    engine: ScriptedEngine
    model: ServedModel
    tokenizer: Tokenizer
    url: str

    def says(self, text: str) -> Script:
        """A step for each token."""
        return [[TokenEvent(token)] for token in self.tokenizer.encode(text)]

    def script(self, text: str, end: FinishEvent | None, start: StartEvent | None = None) -> Script:
        """A whole request: it starts, says something, and ends by itself or goes on for ever."""
        return [[start or StartEvent(0.25, CacheUse(miss="new"))], *self.says(text), *([[end]] if end else [])]


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """The real application in this process, on a free port."""
    engine, tokenizer = ScriptedEngine(), Tokenizer(folder)
    model = ServedModel("actor", tokenizer, engine, 4096, 49152, {})  # type: ignore[arg-type]
    app = create_app(Settings(), Registry([model]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield Stage(engine, model, tokenizer, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()
