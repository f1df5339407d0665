"""A group's prefix cache outlives it on disk: each process keeps its own part, and all use what everybody still has."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from groups import Group, group
from jackfield.engine.blocks import BLOCK_TOKENS, chain
from serving import serve
from vision_models import SLIDING, write_vision_model

DIVIDED = [(2, "tensor"), (3, "pipeline")]
"""Of its eight layers, three processes have three, three and two."""

BLOCKS = 12
KEEP = {"JACKFIELD_PREFIX_CACHE_DISK_BYTES": "1GB"}


@dataclass
class Said:
    """An answer, and what the cache gave for its prompt."""

    text: str
    cached: int
    from_disk: int
    miss: str | None


def prompt(number: int, blocks: int = BLOCKS) -> list[int]:
    """Tokens of so many blocks and a few more, of which no two prompts share any."""
    return [300 + (number * 7919 + position * 31) % 40000 for position in range(blocks * BLOCK_TOKENS + 3)]


def ask(client: openai.OpenAI, tokens: Sequence[int]) -> Said:
    (model,) = client.models.list().data
    answer = client.completions.create(
        model=model.id,
        prompt=list(tokens),
        max_tokens=12,
        temperature=0,
        extra_body={"ignore_eos": True, "jackfield": True},
    )
    assert answer.model_extra is not None
    cache = answer.model_extra["jackfield"]["choices"][0]["cache"]
    return Said(answer.choices[0].text, cache["cached_tokens"], cache["from_disk"], cache["miss"])


def texts(client: openai.OpenAI, *prompts: Sequence[int]) -> list[str]:
    return [ask(client, tokens).text for tokens in prompts]


@contextlib.contextmanager
def life(model: Path, size: int, parallelism: str, folders: Sequence[Path], **more: str) -> Iterator[Group]:
    """The group from its start to its end, with a folder for each rank."""
    apart = [["env", f"JACKFIELD_CACHE_DIR={folder}"] for folder in folders]
    with group(model, size, "--parallelism", parallelism, launchers=apart, **KEEP | more) as serving:
        yield serving


def files(folder: Path, tokens: Sequence[int], kind: str = "kv") -> list[Path]:
    """Those of a prompt's blocks that are in a rank's folder, in order."""
    names = [f"{link.digest.hex()}.{kind}" for link in chain(tokens)]
    return [path for name in names for path in folder.rglob(name)]


@pytest.mark.parametrize(("size", "parallelism"), DIVIDED)
def test_a_group_reads_what_the_one_before_it_has_written(
    model: Path, alone: openai.OpenAI, tmp_path: Path, size: int, parallelism: str
) -> None:
    """Ranks on one machine share a folder, and do not take each other's part for their own."""
    prompts = [prompt(number) for number in range(6)]
    expected = texts(alone, *prompts)
    with life(model, size, parallelism, [tmp_path] * size) as serving:
        assert texts(serving.client, *prompts) == expected
    assert all(len(files(tmp_path, tokens)) == size * BLOCKS for tokens in prompts)
    with life(model, size, parallelism, [tmp_path] * size) as serving, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda tokens: ask(serving.client, tokens), prompts))
    assert answers == [Said(text, BLOCKS * BLOCK_TOKENS, BLOCKS * BLOCK_TOKENS, None) for text in expected]


def lose(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def hang(path: Path) -> None:
    """Who reads it waits for ever."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(("size", "parallelism"), DIVIDED)
def test_what_one_rank_has_not_nobody_uses(
    model: Path, alone: openai.OpenAI, tmp_path: Path, size: int, parallelism: str
) -> None:
    """Files that only one of them has lost, finds damaged or cannot read are computed again by all."""
    folders = [tmp_path / str(rank) for rank in range(size)]
    prompts = [prompt(number) for number in range(6)]
    expected = texts(alone, *prompts)
    with life(model, size, parallelism, folders) as serving:
        assert texts(serving.client, *prompts) == expected
    spoilt: list[tuple[int, int, Callable[[Path], None]]] = [(1, 0, lose), (2, 0, damage), (3, 1, lose), (4, 1, damage)]
    for number, rank, spoil in [*spoilt, (5, 1, hang)]:
        spoil(files(folders[rank], prompts[number])[7])
    with life(model, size, parallelism, folders) as serving:
        whole, *parts = [ask(serving.client, tokens) for tokens in prompts]
        assert [whole.text, *(part.text for part in parts)] == expected
        assert (whole.from_disk, whole.miss) == (BLOCKS * BLOCK_TOKENS, None)
        assert [part.from_disk for part in parts] == [7 * BLOCK_TOKENS] * 5
        # What has gone before it starts the leader does not know to have been there, as one process would not.
        assert [part.miss for part in parts] == ["diverged", "damaged", "evicted", "evicted", "evicted"]
        assert all(serving.ranks[rank].says("is discarded (it is damaged)") for rank in (0, 1))
        assert serving.ranks[1].says("does not answer in time") and not serving.ranks[0].says("does not answer in time")
        # What was computed again is in everybody's memory.
        assert [ask(serving.client, tokens).cached for tokens in prompts] == [BLOCKS * BLOCK_TOKENS] * 6


@pytest.mark.parametrize(("size", "parallelism"), DIVIDED)
def test_one_rank_has_no_files_at_all(
    model: Path, alone: openai.OpenAI, tmp_path: Path, size: int, parallelism: str
) -> None:
    folders = [tmp_path / str(rank) for rank in range(size)]
    asked = prompt(0)
    with life(model, size, parallelism, folders) as serving:
        first = ask(serving.client, asked)
    (folders[1] / "prefixes").rename(folders[1] / "elsewhere")
    # A folder that cannot be made turns its cache off.
    (folders[1] / "prefixes").write_text("in the way")
    with life(model, size, parallelism, folders) as serving:
        assert serving.ranks[1].says("The prefix cache on disk writes no more")
        again = ask(serving.client, asked)
        assert (again.text, again.cached, again.miss) == (first.text, 0, "evicted")
        assert ask(serving.client, asked).cached == BLOCKS * BLOCK_TOKENS
    assert again.text == ask(alone, asked).text


@pytest.mark.parametrize("disk", ["0", "1GB"])
def test_memory_for_a_few_prompts_only(model: Path, alone: openai.OpenAI, tmp_path: Path, disk: str) -> None:
    """Ranks with three layers and with two let the same blocks go, which come back from disk if they are there."""
    prompts = [prompt(number) for number in range(6)]
    memory = {"JACKFIELD_PREFIX_CACHE_BYTES": "4MB", "JACKFIELD_PREFIX_CACHE_DISK_BYTES": disk}
    with life(model, 3, "pipeline", [tmp_path] * 3, **memory) as serving:
        for _ in range(2):
            answers = [ask(serving.client, tokens) for tokens in prompts]
            assert [one.text for one in answers] == texts(alone, *prompts)
        assert [one.from_disk > 0 for one in answers] == [disk != "0"] * 6
        # Of the third there is room for a part where there are three layers, and for all where there are two.
        again = [ask(serving.client, tokens) for tokens in reversed(prompts[-3:])]
        assert [one.text for one in again] == texts(alone, *reversed(prompts[-3:]))
        assert [one.cached - one.from_disk for one in again[:2]] == [BLOCKS * BLOCK_TOKENS] * 2
        assert 0 < again[2].cached - again[2].from_disk < BLOCKS * BLOCK_TOKENS


@pytest.mark.parametrize("parallelism", ["tensor", "pipeline"])
def test_snapshots(starter: Path, tmp_path: Path, parallelism: str) -> None:
    """A prompt goes on from the last place at which all ranks have the state of layers with a window."""
    model = tmp_path / "windowed"
    model.mkdir()
    write_vision_model(starter, model, SLIDING * 2)
    folders = [tmp_path / str(rank) for rank in range(2)]
    # The first is read up to its end, and so is each of those that go on from there.
    longer = [prompt(0, blocks)[: blocks * BLOCK_TOKENS + 3] for blocks in (4, 8, 12)]
    with serve(model) as server, openai.OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        expected = texts(client, *longer)
    with life(model, 2, parallelism, folders) as serving:
        assert texts(serving.client, *longer) == expected
    last, before, first = (files(folders[rank], longer[-1], "state") for rank in (0, 1, 1))
    assert len(last) == len(before) == len(first) >= 3
    last[-1].unlink()
    before[-2].unlink()
    with life(model, 2, parallelism, folders) as serving:
        said = ask(serving.client, longer[-1])
    assert (said.text, said.cached) == (expected[-1], 4 * BLOCK_TOKENS)
