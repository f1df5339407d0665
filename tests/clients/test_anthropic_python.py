"""The official Anthropic SDK, as docs/clients.md sets it up; test_anthropic_sdk.py tries all that it can do."""

from asked import Asked
from desk import Desk

from jackfield.testing import JackfieldServer


def test_the_page_says_how(server: JackfieldServer, desk: Desk) -> None:
    server.says("It is Paris.")
    assert desk.run("Anthropic SDK for Python", "python").out == "It is Paris.\n"
    assert desk.asked() == [Asked("POST", "/v1/messages", 200)]
