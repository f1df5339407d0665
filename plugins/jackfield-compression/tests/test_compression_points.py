"""What is kept on disk about conversations."""

import stat
from pathlib import Path

import pytest

from compression_conversations import chat, compress, plugin, text_of
from jackfield_compression.points import CAPACITY, Points

LINK = b"0123456789abcdef"


def link(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_points_outlive_the_server(tmp_path: Path) -> None:
    points = Points(tmp_path / "points")
    points.put(LINK, 700)
    points.put(link(1), 600)
    points.put(LINK, 500)
    again = Points(tmp_path / "points")
    assert (again.get(LINK), again.get(link(1)), again.get(link(2))) == (500, 600, None)
    assert again.key == points.key


def test_half_a_record_at_the_end_costs_only_itself(tmp_path: Path) -> None:
    points = Points(tmp_path / "points")
    points.put(link(1), 600)
    points.put(LINK, 700)
    file = tmp_path / "points"
    file.write_bytes(file.read_bytes()[:-3])
    again = Points(file)
    assert (again.get(link(1)), again.get(LINK)) == (600, None)
    again.put(LINK, 800)
    assert Points(file).get(LINK) == 800


@pytest.mark.parametrize("data", [b"", b"JFPOINT1short", b"something else" * 100])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "points"
    file.write_bytes(data)
    points = Points(file)
    points.put(LINK, 700)
    assert Points(file).get(LINK) == 700


def test_the_oldest_go_and_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "points"
    points = Points(file)
    for number in range(2 * CAPACITY + 10):
        points.put(link(number), 1)
    assert points.get(link(5)) is None
    assert file.stat().st_size < 20 * CAPACITY + 1000
    assert Points(file).get(link(2 * CAPACITY + 9)) == 1


def test_the_file_is_the_users_own_and_holds_no_text(tmp_path: Path) -> None:
    messages = chat(60)
    assert compress(plugin(tmp_path), messages, 500)
    file = tmp_path / "points"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size == 8 + 16 + 20
    assert b"Turn" not in file.read_bytes()


def test_two_servers_have_digests_of_their_own(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        compress(plugin(tmp_path / name), chat(60), 500)
        found.append((tmp_path / name / "points").read_bytes()[24:40])
    assert found[0] != found[1]


def test_without_a_disk_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "points").mkdir()
    found = compress(plugin(tmp_path), chat(60), 500)
    assert found is not None
    assert "After a restart" in caplog.text
    assert "Turn" not in caplog.text


def test_after_a_restart_the_conversation_goes_on_as_it_began(tmp_path: Path) -> None:
    messages = chat(100)
    before = compress(plugin(tmp_path), messages[:-2], 800)
    after = compress(plugin(tmp_path), messages, 800)
    alone = compress(plugin(), messages, 800)
    assert before is not None
    assert after is not None
    assert alone is not None
    assert list(after.messages) == [*before.messages, *messages[-2:]]
    assert text_of(after.messages) != text_of(alone.messages)
    assert [file.name for file in tmp_path.iterdir()] == ["points"]
