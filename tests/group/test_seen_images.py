"""Images in a group: each process encodes them for itself, and answers are those of one process."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from groups import Group, group, mpi_group, start
from serving import serve
from vision_models import PLAIN, SLIDING, picture, write_vision_model

DIVIDED = [(group, "sliding", "tensor"), (group, "plain", "tensor"), (group, "sliding", "pipeline")]
DIVIDED += [(group, "plain", "pipeline"), (mpi_group, "sliding", "pipeline")]
LAYERS = {"sliding": SLIDING * 2, "plain": PLAIN * 2}
"""Windows and whole attention in turns, and whole attention alone."""

WORDS = "What is to be seen here, and what is not? " * 12


@pytest.fixture(scope="module")
def models(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("models") / name for name in LAYERS}
    for name, folder in folders.items():
        folder.mkdir()
        write_vision_model(starter, folder, LAYERS[name])
    return folders


@pytest.fixture(scope="module")
def alone(models: dict[str, Path]) -> Iterator[dict[str, openai.OpenAI]]:
    """Each model in one process."""
    with serve(models["sliding"]) as sliding, serve(models["plain"]) as plain:
        servers = {"sliding": sliding, "plain": plain}
        yield {name: openai.OpenAI(base_url=one.api, api_key="none", max_retries=0) for name, one in servers.items()}


@pytest.fixture(scope="module", params=DIVIDED, ids=lambda divided: f"{divided[0].__name__}-{divided[1]}-{divided[2]}")
def together(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[tuple[str, Group]]:
    """One of them among two processes."""
    begun, name, parallelism = request.param
    with begun(models[name], 2, "--parallelism", parallelism) as serving:
        yield name, serving


def image(seed: int) -> dict[str, Any]:
    """A part of a message."""
    stream = BytesIO()
    Image.fromarray(picture(seed, 2 + seed % 3, 3)).save(stream, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()},
    }


def ask(client: openai.OpenAI, model: str, *seeds: int, before: str = WORDS, **options: Any) -> Any:
    parts = [{"type": "text", "text": before}, *map(image, seeds), {"type": "text", "text": WORDS}]
    options = {"temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}, **options}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}], **options)


def text(*arguments: Any, **options: Any) -> str:
    return ask(*arguments, **options).choices[0].message.content


def test_the_same_as_one_process(together: tuple[str, Group], alone: dict[str, openai.OpenAI]) -> None:
    """With images of several sizes, one and more, and none; each of them says something else."""
    model, serving = together
    asked: list[tuple[int, ...]] = [(), (1,), (2,), (2, 1, 3)]
    answers = [text(serving.client, model, *seeds) for seeds in asked]
    assert answers == [text(alone[model], model, *seeds) for seeds in asked]
    assert len(set(answers)) == len(asked)
    seeded = {"temperature": 0.9, "seed": 4}
    assert text(serving.client, model, 1, **seeded) == text(alone[model], model, 1, **seeded)


def test_many_at_once(together: tuple[str, Group], alone: dict[str, openai.OpenAI]) -> None:
    model, serving = together

    def answer(client: openai.OpenAI, number: int) -> str:
        # With this word the two likeliest tokens are never closer than 2e-3, which no other order of sums makes up for.
        return text(client, model, *range(number % 4), before=f"Letter {number}. {WORDS * (number % 3)}")

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: answer(serving.client, number), range(12)))
    assert answers == [answer(alone[model], number) for number in range(12)]


def test_the_prefix_cache_knows_them(together: tuple[str, Group], alone: dict[str, openai.OpenAI]) -> None:
    """What was read with an image is of use to whoever sends the same one, and to nobody else."""
    model, serving = together
    # New to both, though others have asked the one alone before.
    before = f"Of {serving.url} alone. {WORDS}"

    def cached(client: openai.OpenAI, *seeds: int) -> int:
        return ask(client, model, *seeds, before=before).usage.prompt_tokens_details.cached_tokens

    asked = [(5, 6), (5, 6), (5, 7), (7, 6)]
    found = [cached(serving.client, *seeds) for seeds in asked]
    assert found[0] == 0 and found[1] > found[2]
    assert found == [cached(alone[model], *seeds) for seeds in asked]
    answers = [text(serving.client, model, *seeds, before=before) for seeds in asked]
    assert answers == [text(alone[model], model, *seeds, before=before) for seeds in asked]


def test_a_vocabulary_that_cannot_be_divided(starter: Path, tmp_path: Path) -> None:
    """What cannot be shared out can be a pipeline, unless something else was asked for."""
    folder = tmp_path / "odd"
    folder.mkdir()
    write_vision_model(starter, folder, PLAIN, rows=1)
    with start(folder, 2, "--parallelism", "tensor") as (ranks, _):
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
        assert all(rank.says("cannot be divided among 2 processes. tensor: group size 2 must") for rank in ranks)
    with serve(folder) as server, openai.OpenAI(base_url=server.api, api_key="none", max_retries=0) as client:
        expected = text(client, "odd", 1)
    with group(folder, 2) as serving:
        assert all(rank.says("cannot be shared out (group size 2 must") for rank in serving.ranks)
        assert serving.ranks[0].says("pipeline parallelism")
        assert text(serving.client, "odd", 1) == expected
