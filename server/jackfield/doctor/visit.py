"""A visit to a running server: what is asked there, as any client would ask it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from jackfield.errors import ConfigurationError, JackfieldError

PATIENCE = 600.0
"""Seconds that an answer may take: the model may have to be loaded first."""
CONNECT_SECONDS = 5.0

Json = dict[str, Any]


class VisitError(JackfieldError):
    """The server could not be asked, or did not answer as it should."""


@dataclass
class Streamed:
    """An answer that came in pieces."""

    text: str = ""
    pieces: int = 0
    first_seconds: float = 0.0
    """Until the first piece of text."""
    seconds: float = 0.0
    usage: Json = field(default_factory=dict)
    finish_reason: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """After the first one."""
        tokens = self.usage.get("completion_tokens", 0)
        return float(max(tokens - 1, 0) / max(self.seconds - self.first_seconds, 1e-9))


class Visit:
    """Asks one model of one server.

    Args:
        url: the server's, with or without ``/v1``.
        key: sent with every request.
        model: whom to ask; by default the first one that is listed.

    Raises:
        ConfigurationError: the address is none, or no header can hold the key.
    """

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        self.url = _address(url)
        self.key = _key(key or "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # Not through a proxy: the server is to be seen as it is.
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=_timeout(PATIENCE), trust_env=False)
        self.model = model or ""

    def close(self) -> None:
        """The end of the visit."""
        self._client.close()

    def get(self, path: str, seconds: float = PATIENCE) -> httpx2.Response:
        """Whatever the server answers."""
        return self._sent("GET", path, seconds=seconds)

    def post(self, path: str, body: Json | bytes) -> httpx2.Response:
        """Whatever the server answers."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._sent("POST", path, content)

    def _sent(self, method: str, path: str, content: bytes | None = None, seconds: float = PATIENCE) -> httpx2.Response:
        headers = {"Content-Type": "application/json"}
        with self._reaching(path):
            return self._client.request(method, path, content=content, headers=headers, timeout=_timeout(seconds))

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            unreached = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
            came_of_it = "cannot be reached" if unreached else "gave no answer"
            raise VisitError(
                f"{self.url}{path} {came_of_it}: {str(error).rstrip('.') or type(error).__name__}.",
                suggestions=("See whether the server runs, and where: jackfield serve says so.",),
            ) from error

    def report(self) -> Json:
        """What the server tells of the model; nothing if it is of a kind that does not."""
        return document(self.get(f"/v1/models/{self.model}"))

    def asked(self, path: str, **fields: Any) -> Json:
        """What a good answer says.

        Raises:
            VisitError: it was none.
        """
        return self._checked(self.post(path, {"model": self.model, **fields}))

    def _checked(self, response: httpx2.Response) -> Json:
        if response.status_code != 200 or not document(response):
            told, suggestions = refusal(response)
            raise VisitError(
                f"The server answered {response.status_code}: {told or 'not as it should'}", suggestions=suggestions
            )
        return document(response)

    def chat(self, text: str, **fields: Any) -> Json:
        """The answer to a question, without thoughts; the most likely one unless ``fields`` say otherwise."""
        path, asked = "/v1/chat/completions", {"model": self.model, **_question(text), **fields}
        # Thoughts would leave no tokens for the answer.
        response = self.post(path, {**asked, "reasoning_effort": "none"})
        # Some servers do not know the field, or its value.
        return self._checked(self.post(path, asked) if response.status_code in (400, 422) else response)

    def completion(self, text: str, **fields: Any) -> Json:
        """What a text goes on with."""
        return self.asked("/v1/completions", **{"prompt": text, "temperature": 0, **fields})

    def streamed(self, text: str, **fields: Any) -> Streamed:
        """What a text goes on with, piece by piece."""
        answer, started = Streamed(), time.perf_counter()
        with self.stream(text, **fields) as chunks:
            for chunk in chunks:
                now = time.perf_counter() - started
                answer.usage = chunk.get("usage") or answer.usage
                for choice in chunk.get("choices") or ():
                    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                    if choice.get("text"):
                        answer.first_seconds = answer.first_seconds or now
                        answer.seconds, answer.pieces = now, answer.pieces + 1
                        answer.text += choice["text"]
        return answer

    @contextmanager
    def stream(self, text: str, **fields: Any) -> Iterator[Iterator[Json]]:
        """The chunks of a completion as they come; leaving the context hangs up."""
        options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        body = {"model": self.model, "prompt": text, **options, **fields}
        path = "/v1/completions"
        with self._reaching(path), self._client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
                self._checked(response)
            lines = (line for line in response.iter_lines() if line.startswith("data: {"))
            yield (json.loads(line.removeprefix("data: ")) for line in lines)

    def series(self, name: str) -> float | None:
        """A number among the server's metrics, of the visited model if it is told by model; None if it is not there."""
        response = self.get("/metrics")
        if response.status_code != 200:
            return None
        lines = [line for line in response.text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        own = [line for line in lines if f'model_name="{self.model}"' in line] or lines
        return float(own[0].rsplit(" ", 1)[1]) if own else None


def _question(text: str) -> Json:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0}


def text_of(answer: Json) -> str:
    """Of an answer in a conversation; its thoughts if there is nothing else."""
    message = answer["choices"][0]["message"]
    return str(message.get("content") or message.get("reasoning_content") or message.get("reasoning") or "")


def only_thinks(answer: Json) -> bool:
    """Whether its tokens did not reach beyond its thoughts."""
    choice = answer["choices"][0]
    return choice.get("finish_reason") == "length" and not choice["message"].get("content") and bool(text_of(answer))


def document(response: httpx2.Response) -> Json:
    """The object that was answered; an empty one instead of an error, or of anything else."""
    found = _json(response)
    return found if response.status_code == 200 and isinstance(found, dict) else {}


def refusal(response: httpx2.Response) -> tuple[str, tuple[str, ...]]:
    """What an error says, and suggests; servers have it in different places, and some nowhere."""
    found = _json(response)
    told = found if isinstance(found, dict) else {}
    told = told.get("error") or told
    if not isinstance(told, dict):
        return str(told), ()
    return str(told.get("message") or told.get("detail") or ""), tuple(told.get("suggestions") or ())


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _address(url: str) -> str:
    try:
        if httpx2.URL(url).host:
            return url.rstrip("/").removesuffix("/v1")
    except httpx2.InvalidURL:
        pass
    raise ConfigurationError(
        f"{url} is no address of a server.", suggestions=("Write it like http://127.0.0.1:8080 or http://[::1]:8080.",)
    )


def _key(written: str) -> str:
    """Without what surrounds it, as the server reads it."""
    key = written.strip()
    if not (key.isascii() and key.isprintable()):
        # Without quoting it.
        raise ConfigurationError(
            "The key has characters that cannot be sent.", suggestions=("Set JACKFIELD_API_KEY to the key alone.",)
        )
    return key


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
