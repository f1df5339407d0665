"""Stored responses: kept within bounds, shared by servers, and never in anybody's way."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jackfield import response_store
from jackfield.errors import UnavailableError
from jackfield.response_store import FILE, MissingResponseError, ResponseStore, StoredResponse

Result = TypeVar("Result")
LARGE = 1 << 20


def do(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    return ResponseStore(tmp_path, max_bytes=LARGE, max_days=30)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(response_store.time, "time", lambda: now[0])
    yield now


def response(name: str, previous: str | None = None, owner: str = "", text: str = "") -> StoredResponse:
    body = json.dumps({"id": name, "text": text})
    given, made = [{"id": f"{name}-in"}], [{"id": f"{name}-out"}]
    return StoredResponse(name, owner, previous, body, given, made)


def put(store: ResponseStore, *names: str, **more: Any) -> None:
    for name in names:
        assert do(store.put(response(name, **more)))


def kept(store: ResponseStore, *names: str) -> list[str]:
    return [name for name in names if do(store.get("", name))]


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def test_what_is_put_is_got_until_it_is_deleted(store: ResponseStore) -> None:
    put(store, "a", "b")
    body = do(store.get("", "a"))
    assert body is not None
    assert json.loads(body) == {"id": "a", "text": ""}
    assert ids(do(store.given("", "a"))) == ["a-in"]
    assert ids(do(store.conversation("", "a"))) == ["a-in", "a-out"]
    assert do(store.items("", ["a-out", "b-in", "c"])) == {"a-out": {"id": "a-out"}, "b-in": {"id": "b-in"}}
    assert do(store.delete("", "a"))
    assert not do(store.delete("", "a"))
    assert kept(store, "a", "b") == ["b"]
    assert do(store.items("", ["a-out"])) == {}


def test_chains_are_read_from_their_beginning(store: ResponseStore) -> None:
    put(store, "a")
    put(store, "b", previous="a")
    put(store, "c", previous="b")
    assert ids(do(store.conversation("", "c"))) == ["a-in", "a-out", "b-in", "b-out", "c-in", "c-out"]
    assert ids(do(store.given("", "c"))) == ["a-in", "a-out", "b-in", "b-out", "c-in"]
    do(store.delete("", "a"))
    with pytest.raises(MissingResponseError) as caught:
        do(store.conversation("", "c"))
    assert caught.value.response == "a"
    with pytest.raises(MissingResponseError) as caught:
        do(store.given("", "z"))
    assert caught.value.response == "z"


def test_owners_see_only_their_own(store: ResponseStore) -> None:
    put(store, "a", owner="alice")
    assert do(store.get("bob", "a")) is None
    assert not do(store.delete("bob", "a"))
    assert do(store.items("bob", ["a-out"])) == {}
    with pytest.raises(MissingResponseError):
        do(store.conversation("bob", "a"))
    assert do(store.get("alice", "a"))


def test_looking_makes_no_file_and_storing_makes_one_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    store = ResponseStore(folder, max_bytes=LARGE, max_days=1)
    assert do(store.get("", "a")) is None
    do(store.forget_old())
    assert not folder.exists()
    put(store, "a")
    (file,) = folder.iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == (FILE, 0o600)


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path, clock: list[float]) -> None:
    store = ResponseStore(tmp_path, max_bytes=3000, max_days=30)
    for name in "abcde":
        clock[0] += 1
        put(store, name, text="x" * 900)
    assert kept(store, *"abcde") == ["c", "d", "e"]


def test_going_on_from_a_response_keeps_it_and_its_past(tmp_path: Path, clock: list[float]) -> None:
    store = ResponseStore(tmp_path, max_bytes=4500, max_days=30)
    put(store, "a", text="x" * 900)
    clock[0] += 1
    put(store, "b", text="x" * 900, previous="a")
    clock[0] += 1
    put(store, "c", "d", text="x" * 900)
    clock[0] += 1
    do(store.conversation("", "b"))
    clock[0] += 1
    put(store, "e", text="x" * 900)
    assert kept(store, *"abcde") == ["a", "b", "d", "e"]


def test_what_has_been_kept_long_enough_goes(tmp_path: Path, clock: list[float]) -> None:
    store = ResponseStore(tmp_path, max_bytes=LARGE, max_days=2)
    put(store, "a")
    clock[0] += 86400
    put(store, "b")
    clock[0] += 86401
    assert kept(store, "a", "b") == ["b"]
    clock[0] += 86400
    do(store.forget_old())
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("SELECT count(*) FROM responses").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_what_is_larger_than_all_that_may_be_kept_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResponseStore(tmp_path, max_bytes=1000, max_days=1)
    put(store, "a")
    assert not do(store.put(response("b", text="x" * 1000)))
    assert "stored_responses_bytes" in caplog.text
    assert kept(store, "a", "b") == ["a"]


def test_deleted_text_is_not_left_on_the_disk(store: ResponseStore, tmp_path: Path) -> None:
    put(store, "a", text="confidential " * 1000)
    size = (tmp_path / FILE).stat().st_size
    assert b"confidential" in (tmp_path / FILE).read_bytes()
    do(store.delete("", "a"))
    assert b"confidential" not in (tmp_path / FILE).read_bytes()
    assert (tmp_path / FILE).stat().st_size < size


def test_nor_is_it_beside_what_stays(store: ResponseStore, tmp_path: Path) -> None:
    put(store, "a", text="confidential")
    put(store, "b", text="public")
    do(store.delete("", "a"))
    content = (tmp_path / FILE).read_bytes()
    assert b"public" in content
    assert b"confidential" not in content


def test_two_servers_share_a_file(tmp_path: Path) -> None:
    stores = [ResponseStore(tmp_path, max_bytes=LARGE, max_days=1) for _ in range(2)]
    names = [[f"{index}-{number}" for number in range(15)] for index in range(2)]
    done: list[bool] = []

    def fill(index: int) -> None:
        done.extend(do(stores[index].put(response(name))) for name in names[index])

    threads = [threading.Thread(target=fill, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 30
    assert kept(stores[0], *names[1]) == names[1]
    assert kept(stores[1], *names[0]) == names[0]


@pytest.mark.parametrize("harm", ["not a database at all, only text " * 100, "middle"])
def test_a_damaged_file_is_put_aside(
    store: ResponseStore, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, *"abcdefgh", text="x" * 5000)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    if harm == "middle":
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)
    else:
        file.write_text(harm)
    put(store, "i")
    assert kept(store, "a", "i") == ["i"]
    assert "damaged" in caplog.text
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_put_aside_by_those_who_only_look(store: ResponseStore, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database " * 100)
    assert do(store.get("", "a")) is None
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    put(store, "a")
    assert kept(store, "a") == ["a"]


def test_a_file_that_another_server_has_replaced_stays(store: ResponseStore, tmp_path: Path) -> None:
    put(store, "a")
    store._put_aside(0, sqlite3.DatabaseError("as this server has seen it"))
    assert kept(store, "a") == ["a"]
    assert list(tmp_path.glob("*.damaged-*")) == []


def test_a_file_that_cannot_be_used_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    store = ResponseStore(tmp_path, max_bytes=LARGE, max_days=1)
    assert not do(store.put(response("a")))
    assert "could not be stored" in caplog.text
    with pytest.raises(UnavailableError):
        do(store.get("", "a"))
    do(store.forget_old())
    (tmp_path / "file").write_text("")
    store = ResponseStore(tmp_path / "file", max_bytes=LARGE, max_days=1)
    assert not do(store.put(response("a")))


def test_a_file_that_somebody_else_holds_is_waited_for_and_then_left(
    store: ResponseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "a")
    monkeypatch.setattr(response_store, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not do(store.put(response("b")))
        assert "locked" in caplog.text
    put(store, "c")
    assert kept(store, *"abc") == ["a", "c"]
    assert list(tmp_path.glob("*.damaged-*")) == []
