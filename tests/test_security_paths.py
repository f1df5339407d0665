"""No name that a client or a repository chooses leads to a file outside of where such files are."""

import http.client
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from jackfield.errors import ModelLoadError
from jackfield.models.adapter_file import read_adapter
from jackfield.models.hub import Hub
from jackfield.models.sources import SOURCES, resolve
from jackfield.testing import JackfieldServer, StartServer

NAMES = ("../../etc/passwd", "/etc/passwd", "..%2f..%2fetc%2fpasswd", "a/../../b", "\x00", "con\\..\\x", "~root", ".")


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server()


def status(server: JackfieldServer, path: str) -> int:
    """As it is: clients of a better sort would tidy the path up."""
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as connection:
        connection.putrequest("GET", path)
        connection.endheaders()
        return connection.getresponse().status


@pytest.mark.parametrize("name", NAMES)
def test_a_clients_name_for_a_model_is_no_path(server: JackfieldServer, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
    reply = server.post("/v1/chat/completions", body)
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
    for what in ("load", "unload"):
        assert server.post(f"/v1/models/{what}", {"model": name}).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../../etc/passwd",
        "/v1/models/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models//etc/passwd",
        "/v1/responses/../../etc/passwd",
        "/v1/responses/resp_..%2f..%2fetc%2fpasswd",
        "/v1/responses/resp_%00",
        "/dashboard/../../etc/passwd",
    ],
)
def test_no_path_leads_out(server: JackfieldServer, path: str) -> None:
    assert status(server, path) in (400, 404)


@pytest.mark.parametrize("name", ["../../etc", "org/..", "../x", "org/name@../../x", "a/b/c", "org/na me", "org/\x00"])
def test_a_name_on_the_hub_is_none_with_dots_in_it(name: str) -> None:
    assert not Hub().matches(name)


def test_what_is_converted_stays_in_the_cache(tmp_path: Path) -> None:
    """A file's own name is part of its folder's."""
    source = tmp_path / "..%2f.. x.gguf"
    source.write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        resolve(str(source), cache=tmp_path / "cache", sources=SOURCES)
    outside = [path for path in tmp_path.rglob("*") if "cache" not in path.parts[len(tmp_path.parts) :][:1]]
    assert outside == [source]


def test_an_adapter_is_read_from_its_folder_alone(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "adapter", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": 1}, "path": str(elsewhere)}))
    with pytest.raises(ModelLoadError, match="There is no adapter"):
        read_adapter("a", folder)


def test_clients_cannot_name_an_adapter_that_is_not_set(server: JackfieldServer, tmp_path: Path) -> None:
    for name in (str(tmp_path), f"scripted:{tmp_path}", os.path.relpath(tmp_path)):
        reply = server.post("/v1/completions", {"model": name, "prompt": "Hi"})
        assert reply.status == 404
