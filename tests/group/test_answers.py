"""A group answers as one process does, over the whole API."""

import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from safetensors.numpy import load_file

from groups import Group, group, mpi_group, wait_until
from jackfield.models.service import plan_folder
from jackfield.settings import Settings

DIVIDED = [
    (group, 2, "tensor"),
    (group, 3, "tensor"),
    (group, 2, "pipeline"),
    (group, 3, "pipeline"),
    (mpi_group, 2, "tensor"),
    (mpi_group, 3, "pipeline"),
]

LONG = "Once upon a time there was a fox who lived in a wood by a river. " * 30

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@pytest.fixture(scope="module", params=DIVIDED, ids=lambda divided: f"{divided[0].__name__}-{divided[1]}-{divided[2]}")
def together(request: pytest.FixtureRequest, model: Path) -> Iterator[Group]:
    """The model among several processes."""
    begun, size, parallelism = request.param
    with begun(model, size, "--parallelism", parallelism) as serving:
        assert f"{parallelism} parallelism" in serving.log
        yield serving


def chat(client: openai.OpenAI, **options: Any) -> Any:
    options = {"max_tokens": 24, "temperature": 0, **options}
    messages = [{"role": "user", "content": options.pop("content", "Tell me of the fox.")}]
    return client.chat.completions.create(model="group-model", messages=messages, **options)


def text(client: openai.OpenAI, **options: Any) -> str:
    return chat(client, **options).choices[0].message.content


def streamed(client: openai.OpenAI, **options: Any) -> str:
    chunks = chat(client, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def tool_call(client: openai.OpenAI) -> str:
    call = chat(client, tools=[TOOL], tool_choice="required", max_tokens=80).choices[0].message.tool_calls[0]
    return f"{call.function.name} {call.function.arguments}"


def completion(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(model="group-model", temperature=0, **options).choices


ASKED: dict[str, Callable[[openai.OpenAI], Any]] = {
    "greedy": text,
    "long prompt": lambda client: text(client, content=LONG),
    "stream": streamed,
    "seeds": lambda client: [text(client, temperature=0.9, top_p=0.9, seed=seed) for seed in range(3)],
    "penalties": lambda client: text(client, frequency_penalty=1.5, logit_bias={"10": -100}),
    "schema": lambda client: text(
        client, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    ),
    "tool": tool_call,
    "choices": lambda client: [c.message.content for c in chat(client, n=3, temperature=0.8, seed=5).choices],
    "stop": lambda client: text(client, stop=[text(client)[10:14]]),
    "echo": lambda client: [c.text for c in completion(client, prompt="The fox", max_tokens=3, echo=True)],
}


@pytest.mark.parametrize("name", ASKED)
def test_the_same_as_one_process(together: Group, alone: openai.OpenAI, name: str) -> None:
    ask = ASKED[name]
    assert ask(together.client) == ask(alone)


def test_log_probabilities(together: Group, alone: openai.OpenAI) -> None:
    def scored(client: openai.OpenAI) -> list[float]:
        choice = completion(client, prompt="The fox lives in", max_tokens=4, logprobs=2, echo=True)[0]
        return choice.logprobs.token_logprobs[1:]

    assert scored(together.client) == pytest.approx(scored(alone), abs=1e-3)


def test_embeddings(together: Group, alone: openai.OpenAI) -> None:
    def vectors(client: openai.OpenAI) -> list[float]:
        answer = client.embeddings.create(model="group-model", input=["fox", LONG], encoding_format="float")
        return [number for one in answer.data for number in one.embedding]

    assert vectors(together.client) == pytest.approx(vectors(alone), abs=1e-3)


def test_the_prefix_cache_is_used(together: Group) -> None:
    prompt = "A prompt of this test alone. " + LONG
    first = chat(together.client, content=prompt)
    again = chat(together.client, content=prompt)
    assert first.usage.prompt_tokens_details.cached_tokens < 64
    assert again.usage.prompt_tokens_details.cached_tokens > 200
    assert again.choices[0].message.content == first.choices[0].message.content


def test_many_at_once(together: Group, alone: openai.OpenAI) -> None:
    """Requests of all lengths come, are batched, and some of them go before their end."""
    stays = [f"Story {number}. {LONG[: 90 * number]}" for number in range(10)]

    def leave(number: int) -> None:
        chunks = chat(together.client, content=f"Leave {number}. {LONG}", max_tokens=2000, stream=True)
        next(iter(chunks))
        chunks.close()

    with ThreadPoolExecutor(16) as threads:
        leaving = [threads.submit(leave, number) for number in range(6)]
        texts = list(threads.map(lambda content: text(together.client, content=content), stays))
        for one in leaving:
            one.result()
    assert texts == [text(alone, content=content) for content in stays]
    wait_until(lambda: counted(together, "num_requests_running") == 0, lambda: together.log)


def counted(together: Group, metric: str) -> float:
    """What ``/metrics`` says."""
    with urllib.request.urlopen(f"{together.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"jackfield_{metric}{{"))


@pytest.mark.parametrize(("size", "parallelism", "share"), [(2, "tensor", 1 / 2), (3, "pipeline", 3 / 8)])
def test_when_memory_is_short(size: int, parallelism: str, share: float, model: Path, alone: openai.OpenAI) -> None:
    """Answers that outgrow the memory make room for each other, in all processes alike, whatever each has of them."""
    flags = ("--parallelism", parallelism, "--max-batch", "8", "--context-length", "1024")
    limit = needs(model, share) + (5 << 20)
    asked = [f"Tell me of {number} foxes." for number in range(4)]
    with (
        group(model, size, *flags, "--memory-limit", str(limit), JACKFIELD_PREFIX_CACHE_BYTES="0") as serving,
        ThreadPoolExecutor(8) as threads,
    ):
        texts = list(
            threads.map(
                lambda content: text(serving.client, content=content, max_tokens=400, extra_body={"ignore_eos": True}),
                asked,
            )
        )
        assert counted(serving, "num_preemptions_total") > 0
        assert texts == [
            text(alone, content=content, max_tokens=400, extra_body={"ignore_eos": True}) for content in asked
        ]


def needs(model: Path, share: float) -> int:
    """Bytes that a process with such a share of all layers takes before any request, of a context of 1024."""
    settings = Settings(model=str(model), context_length=1024, max_batch=8)
    workspace = plan_folder(settings, model, 8 << 30).workspace
    weights = load_file(model / "model.safetensors")
    divided = sum(array.nbytes for name, array in weights.items() if "_proj" in name and "o_proj.bias" not in name)
    return workspace + sum(array.nbytes for array in weights.values()) - int(divided * (1 - share))


def test_quantized_keys_and_values(model: Path) -> None:
    with group(model, 2, "--parallelism", "pipeline", "--kv-bits", "8") as serving:
        texts = [text(serving.client, content=f"{number} {LONG}") for number in range(2)]
        again = [text(serving.client, content=f"{number} {LONG}") for number in range(2)]
        assert texts == again


def test_it_ends_when_it_is_told_to(model: Path) -> None:
    """What streams is finished, and all processes end well."""
    with group(model, 2) as serving:
        chunks = chat(serving.client, stream=True, max_tokens=200, extra_body={"ignore_eos": True})
        assert [next(chunks) for _ in range(4)][-1].choices[0].delta.content
        for rank in serving.ranks:
            rank.process.terminate()
        last = list(chunks)[-1]
        assert last.choices[0].finish_reason == "length"
        assert [rank.process.wait(30) for rank in serving.ranks] == [0, 0]
