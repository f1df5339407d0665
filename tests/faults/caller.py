"""Who asks a server over HTTP, whatever the bytes."""

import http.client
import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

from serving import Server

Body = dict[str, Any]
PATIENCE = 60
"""Seconds that nothing here takes, unless it takes for ever."""


def chat(text: Any) -> Body:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2}


def messages(text: Any) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


ENDPOINTS: dict[str, Callable[[Any], Body]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 2},
    "/v1/responses": lambda text: {"input": text, "max_output_tokens": 16, "store": True},
    "/v1/messages": chat,
    "/v1/messages/count_tokens": messages,
    "/infill": lambda text: {"input_prefix": text, "input_suffix": "", "n_predict": 2},
    "/v1/fim/completions": lambda text: {"prompt": text, "max_tokens": 2},
    "/v1/embeddings": lambda text: {"input": text},
    "/v1/tokenize": lambda text: {"prompt": text},
    "/v1/apply-template": messages,
}
BOUND = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/fim/completions",
    "/v1/embeddings",
)
"""Those that refuse what is longer than the context; /infill leaves out what is too much."""


def ask(server: Server, method: str, path: str, data: bytes = b"", **headers: str) -> tuple[int, bytes, str | None]:
    """Status, body and cookie, of which there is none."""
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)) as connection:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers["Set-Cookie"]


def post(server: Server, path: str, body: Body | bytes, **headers: str) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps({"model": server.model, **body}).encode()
    return ask(server, "POST", path, data, **{"Content-Type": "application/json", **headers})[:2]


def refusal(server: Server, path: str, body: Body | bytes) -> dict[str, Any]:
    """What is wrong with a request, of which the client is told at once."""
    status, answer = post(server, path, body)
    assert status == 400, answer[:300]
    assert len(answer) < 2000, "errors repeat no texts"
    error: dict[str, Any] = json.loads(answer)["error"]
    assert error["message"]
    return error


def is_well(server: Server) -> None:
    assert post(server, "/v1/chat/completions", chat("hi"))[0] == 200


def tokens_found(server: Server, path: str, text: str) -> int:
    """How many tokens of a text that is much too long have been read when it is refused."""
    error = refusal(server, path, ENDPOINTS[path](text))
    if path == "/v1/messages":
        return int(error["message"].removeprefix("prompt is too long: ").split()[0])
    assert error["code"] == "context_length_exceeded"
    assert error["message"].endswith(f" tokens or more. Please reduce the length of the {error['param']}.")
    return int(error["message"].split("resulted in ")[1].split()[0])
