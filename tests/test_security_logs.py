"""What clients send cannot forge lines of the log."""

import http.client
import json
import logging
from contextlib import closing
from pathlib import Path

import pytest

from jackfield.one_line import OneLine
from serving import serve

FORGED = "\nERROR jackfield: forged\r\n\x1b[31mforged\u2028forged"


@pytest.mark.parametrize("text", [FORGED, "a\x00b", "\x9b31m", "\x85next"])
def test_a_message_is_one_line(text: str) -> None:
    record = logging.LogRecord("who", logging.INFO, "", 0, "asked for %s", (text,), None)
    shown = OneLine("%(levelname)s %(name)s: %(message)s").format(record)
    assert len(shown.splitlines()) == 1
    assert shown.isprintable()
    assert shown.startswith("INFO who: asked for ")


def test_where_an_error_was_raised_stands_below() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        record = logging.LogRecord("who", logging.ERROR, "", 0, "failed", (), (ValueError, error, error.__traceback__))
    assert "Traceback" in OneLine("%(message)s").format(record)


def test_a_server_in_full_voice(tiny_model: Path) -> None:
    with serve(tiny_model, JACKFIELD_LOG_LEVEL="debug") as server:
        address = server.url.removeprefix("http://")
        body = {"model": FORGED, "prompt": FORGED, "user": FORGED, "metadata": {"a": FORGED}}
        for path in ("/v1/completions", "/v1/completions%0AERROR%20forged%0D%0A", "/v1/models/%0A%1B%5B31mforged"):
            for method in ("POST", "GET"):
                with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
                    connection.request(
                        method, path, json.dumps(body), {"X-Request-ID": "forged id", "User-Agent": "forged"}
                    )
                    connection.getresponse().read()
    lines = [line.rstrip("\n") for line in server.log]
    assert any("/v1/completions" in line for line in lines)
    assert not [line for line in lines if line.startswith(("ERROR jackfield: forged", "ERROR forged", "forged"))]
    assert not [line for line in lines if "\x1b[31m" in line]
