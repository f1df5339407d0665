"""Adapters in a group: each process has its part of them, and requests are answered as by one process."""

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from group_model import write_adapter, write_experts_model, write_peft_adapter, write_quantized_model
from groups import Group, group, mpi_group, start, wait_until
from serving import serve

WORDS = "Once upon a time there was a fox who lived in a wood by a river. "

DENSE, QUANTIZED, EXPERTS = "group-model", "quantized-model", "experts-model"
NAMES = {DENSE: ("sql", "poems", "dora"), QUANTIZED: ("sql", "dora"), EXPERTS: ("law", "dora")}
"""The adapters of each model."""

DIVIDED = [(group, DENSE, 2, "tensor"), (group, DENSE, 3, "tensor"), (group, DENSE, 2, "pipeline")]
DIVIDED += [(group, EXPERTS, 2, "tensor"), (group, EXPERTS, 2, "pipeline"), (group, QUANTIZED, 2, "tensor")]
DIVIDED += [(mpi_group, DENSE, 2, "tensor")]


@pytest.fixture(scope="session")
def models(model: Path, starter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapted")
    experts = write_experts_model(starter, folder / EXPERTS)
    return {DENSE: model, EXPERTS: experts, QUANTIZED: write_quantized_model(model, folder / QUANTIZED)}


@pytest.fixture(scope="session")
def adapters(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, with a folder for each of its adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    dense, experts = models[DENSE], models[EXPERTS]
    write_adapter(dense, folder / DENSE / "sql", 1)
    # Whoever has none of the last layers has nothing of it.
    last = "model.layers.7"
    write_peft_adapter(dense, folder / DENSE / "poems", 2, layers=last, use_rslora=True)
    write_adapter(dense, folder / DENSE / "dora", 3, dora=True)
    for name in NAMES[QUANTIZED]:
        shutil.copytree(folder / DENSE / name, folder / QUANTIZED / name)
    write_adapter(experts, folder / EXPERTS / "law", 4)
    write_adapter(experts, folder / EXPERTS / "dora", 5, dora=True, layers="model.layers.1.self_attn")
    return folder


def flags(adapters: Path, model: str) -> list[str]:
    named = [part for name in NAMES[model] for part in ("--adapter", f"{name}={adapters / model / name}")]
    return [*named, "--dtype", "keep" if model == QUANTIZED else "auto"]


@pytest.fixture(scope="module")
def alone(models: dict[str, Path], adapters: Path) -> Iterator[dict[str, openai.OpenAI]]:
    """Each model in one process."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(serve(models[name], *flags(adapters, name))) for name in NAMES}
        yield {name: openai.OpenAI(base_url=one.api, api_key="none", max_retries=0) for name, one in servers.items()}


@pytest.fixture(scope="module", params=DIVIDED, ids=lambda one: "-".join([one[0].__name__, *map(str, one[1:])]))
def together(request: pytest.FixtureRequest, models: dict[str, Path], adapters: Path) -> Iterator[tuple[str, Group]]:
    """One of them among several processes."""
    begun, name, size, parallelism = request.param
    with begun(models[name], size, "--parallelism", parallelism, *flags(adapters, name)) as serving:
        yield name, serving


def says(client: openai.OpenAI, model: str, prompt: str, **options: Any) -> str:
    options = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}, **options}
    return client.completions.create(model=model, prompt=prompt, **options).choices[0].text


def test_the_same_as_one_process(together: tuple[str, Group], alone: dict[str, openai.OpenAI]) -> None:
    """Greedy and with seeds, one after the other; each adapter says something else, and the model without, too."""
    model, serving = together
    said = {}
    for name in (model, *NAMES[model]):
        for options in ({}, {"temperature": 0.9, "seed": 7}):
            said[name, str(options)] = says(serving.client, name, WORDS, **options)
            assert said[name, str(options)] == says(alone[model], name, WORDS, **options), (name, options)
    assert len(set(said.values())) == len(said)


def test_all_in_one_batch(together: tuple[str, Group], alone: dict[str, openai.OpenAI]) -> None:
    """Prompts of all lengths, some of which are read in steps that others share."""
    model, serving = together
    asked = [(name, f"{name} {count}. {WORDS * count}") for count in (1, 4, 16) for name in (model, *NAMES[model])]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: says(serving.client, *one), asked))
    assert answers == [says(alone[model], *one) for one in asked]


def test_what_one_has_read_is_not_taken_for_what_another_one_would(together: tuple[str, Group]) -> None:
    model, serving = together

    def cached(name: str) -> int:
        answer = serving.client.completions.create(model=name, prompt=f"Of this test. {WORDS * 20}", max_tokens=1)
        assert answer.usage and answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    names = (model, *NAMES[model])
    assert [cached(name) for name in names] == [0] * len(names)
    assert all(cached(name) for name in names)


def test_other_adapters(models: dict[str, Path], adapters: Path, tmp_path: Path) -> None:
    """Ranks whose adapters differ do not serve, and say so."""
    mine, theirs = tmp_path / "0" / "sql", tmp_path / "1" / "sql"
    shutil.copytree(adapters / DENSE / "sql", mine)
    write_adapter(models[DENSE], theirs, 9)
    own = [["--adapter", f"sql={mine}"], ["--adapter", f"sql={theirs}"]]
    with start(models[DENSE], 2, own=own) as (ranks, _):
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
        assert all(rank.says("Rank 1 has other files of the adapter sql than rank 0.") for rank in ranks)
    with start(models[DENSE], 2, own=[own[0], []]) as (ranks, _):
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
        assert all(rank.says("Rank 1 has no adapters, rank 0 the adapters sql.") for rank in ranks)


def test_an_adapter_of_another_model(models: dict[str, Path], adapters: Path) -> None:
    """All ranks refuse it, whichever layers they have."""
    wrong = ["--adapter", f"law={adapters / EXPERTS / 'law'}", "--parallelism", "pipeline"]
    with start(models[DENSE], 2, *wrong) as (ranks, _):
        wait_until(lambda: all(rank.says("was made for another model") for rank in ranks), lambda: str(ranks))
        assert [rank.process.wait(100) for rank in ranks] == [1, 1]
