"""The plugin as its users meet it: in a server."""

import pytest

from jackfield.testing import StartServer


def test_an_answer_begins_with_the_greeting(jackfield_server: StartServer) -> None:
    server = jackfield_server("hello-world")
    server.says("How are you?")
    assert server.chat("Hi").content == "Hello, world! How are you?"


def test_a_stream_begins_with_it_once_for_each_choice(jackfield_server: StartServer) -> None:
    server = jackfield_server("hello-world")
    server.says("How are you?")
    server.says("What can I do?")
    reply = server.chat("Hi", stream=True, n=2)
    assert [reply.content_of(choice) for choice in (0, 1)] == [
        "Hello, world! How are you?",
        "Hello, world! What can I do?",
    ]


def test_the_client_names_who_is_greeted(jackfield_server: StartServer) -> None:
    server = jackfield_server("hello-world")
    server.says("How are you?")
    options = {"hello-world": {"name": "Ada"}}
    assert server.chat("Hi", jackfield=options).content == "Hello, Ada! How are you?"


def test_settings_change_the_greeting(jackfield_server: StartServer) -> None:
    server = jackfield_server("hello-world", settings={"hello-world": {"greeting": "Salut, {name}. "}})
    server.says("Comment vas-tu?")
    assert server.chat("Hi").content == "Salut, world. Comment vas-tu?"


def test_a_wrong_setting_is_refused_by_name(jackfield_server: StartServer) -> None:
    with pytest.raises(Exception, match="greetin"):
        jackfield_server("hello-world", settings={"hello-world": {"greetin": "Salut"}})


def test_greetings_are_counted(jackfield_server: StartServer) -> None:
    server = jackfield_server("hello-world")
    server.chat("Hi")
    server.chat("Hi")
    assert "jackfield_hello_world_greetings_total 2.0" in server.get("/metrics").text


def test_the_start_is_an_event(jackfield_server: StartServer) -> None:
    assert jackfield_server("hello-world").event("hello").level == "info"
