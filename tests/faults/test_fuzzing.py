"""Whatever comes, each reader either understands it or says what is wrong with it, and does not take for ever.

What has been found once stays, as an example of its property.
"""

import json
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gguf_files
from gguf_files import VOCABULARY
from jackfield.errors import InvalidRequestError, ModelLoadError
from jackfield.json_schema import enforceable
from jackfield.models.convert import convert
from jackfield.protocol.anthropic.request import MessagesRequest, TokenCountRequest
from jackfield.protocol.base import RequestBody
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.completions import CompletionRequest
from jackfield.protocol.embeddings import EmbeddingsRequest
from jackfield.protocol.fim import FimCompletionRequest
from jackfield.protocol.infill import InfillRequest
from jackfield.protocol.parsing import load, parse
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.protocol.tokens import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from model_fixtures import random_weights, tiny_config

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 1e308, 0.5, -0.0, "", "\0", "auto", "user", "function"])
    | st.text(max_size=8)
)
NAMES = st.sampled_from(
    [
        *(
            "type",
            "role",
            "content",
            "text",
            "name",
            "function",
            "parameters",
            "id",
            "input",
            "url",
            "image_url",
            "source",
        ),
        *("enum", "const", "required", "properties", "items", "oneOf", "anyOf", "$ref", "additionalProperties"),
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)

# --- Requests --------------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SAID: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": "a"},
]
SOUND: dict[type[RequestBody], dict[str, Any]] = {
    ChatCompletionRequest: {"model": "m", "messages": SAID, "tools": [TOOL], "logit_bias": {"1": 2}, "stop": ["a"]},
    CompletionRequest: {"model": "m", "prompt": ["a", "b"], "logprobs": 1, "echo": True, "stream": True},
    ResponseRequest: {"model": "m", "input": SAID[:1], "tools": [{"type": "function", "name": "f", "parameters": {}}]},
    MessagesRequest: {"model": "m", "messages": SAID, "max_tokens": 5, "system": [{"type": "text", "text": "s"}]},
    TokenCountRequest: {"model": "m", "messages": SAID, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    InfillRequest: {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "t", "filename": "f"}]},
    FimCompletionRequest: {"model": "m", "prompt": "a", "suffix": "b", "stop": ["c"]},
    EmbeddingsRequest: {"model": "m", "input": ["a", "b"], "dimensions": 3},
    TokenizeRequest: {"prompt": "a", "messages": SAID},
    DetokenizeRequest: {"tokens": [1, 2]},
    ApplyTemplateRequest: {"messages": SAID, "tools": [TOOL]},
}
BYTES = st.binary(max_size=3) | st.sampled_from(
    [b'"', b"{", b"[", b"\\", rb"\ud800", b"\xff", b"1e999", b"NaN", b"-", b","]
)


@settings(deadline=None)
@given(st.sampled_from(list(SOUND)), st.data())
def test_any_bytes_are_a_request_or_an_error(model: type[RequestBody], data: st.DataObject) -> None:
    body = json.dumps(SOUND[model]).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body = body[:at] + data.draw(BYTES) + body[at + data.draw(st.integers(0, 4)) :]
    understood_or_refused(model, body)


@settings(deadline=None)
@given(st.sampled_from(list(SOUND)), st.data())
def test_any_values_are_a_request_or_an_error(model: type[RequestBody], data: st.DataObject) -> None:
    document = json.loads(json.dumps(SOUND[model]))
    for _ in range(data.draw(st.integers(1, 2))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys) if keys else NAMES)
            if not isinstance(place, dict | list) or (isinstance(place, list) and not place):
                break
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                break
            place = inner
    understood_or_refused(model, json.dumps(document).encode())


def understood_or_refused(model: type[RequestBody], body: bytes) -> None:
    try:
        asked = parse(model, body)
    except InvalidRequestError as error:
        envelope = json.dumps(error.envelope())
        assert error.message
        assert len(envelope) < 2000
    else:
        asked.model_dump_json()


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%d":1' % number for number in range(500_000)) + b',"499999":1}',
        b'{"a":1.' + b"1" * 9_000_000 + b"}",
        b'{"a":1e' + b"0" * 9_000_000 + b"}",
        b'{"a":"' + rb"\u00e9" * 1_500_000 + b'"}',
    ],
    ids=["a key twice at the end", "digits", "an exponent of zeros", "escapes"],
)
def test_megabytes_are_read_once(body: bytes) -> None:
    """What is not linear takes hours here."""
    try:
        assert load(body)
    except InvalidRequestError as error:
        assert "'499999' twice" in error.message


# --- Schemas ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(JSON, max_size=4), JSON)
@example([{"type": None}, {"type": "null"}], {})
@example([{"type": "object", "required": 1}, {"type": "object", "required": 1}], {})
@example([{"type": "object", "required": ["a"], "properties": 1}] * 2, {})
@example([{"enum": 1}, {"const": 1}], {})
def test_any_schema_is_rewritten_or_left(branches: list[Any], other: Any) -> None:
    schema = {"oneOf": branches, "properties": {"a": other, "b": {"oneOf": [*branches, {"$ref": "#/properties/a"}]}}}
    json.dumps(enforceable(schema))


@pytest.mark.parametrize(
    "branches",
    [
        [{"const": number} for number in range(20_000)],
        [{"enum": list(range(100_000))}, {"enum": list(range(-100_000, 0))}],
        [{"enum": [[number] for number in range(30_000)]}, {"enum": [[-number - 1] for number in range(30_000)]}],
    ],
    ids=["branches", "values", "lists"],
)
def test_endless_choices_are_not_compared_with_each_other(branches: list[Any]) -> None:
    assert "anyOf" not in enforceable({"oneOf": branches})


# --- GGUF ------------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
LENGTHS = NUMBERS | st.sampled_from([2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
MEMORY = 64 << 20
"""More than reading a file of 50 kB takes, whatever it says of itself."""


@pytest.fixture(scope="module")
def sound() -> bytes:
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    config = tiny_config("qwen2", len(VOCABULARY), **sizes)
    weights = random_weights(config)
    with tempfile.TemporaryDirectory() as name:
        path = gguf_files.write(Path(name, "model.gguf"), config, weights, gguf_files.GGMLQuantizationType.Q8_0)
        return path.read_bytes()


@settings(deadline=None)
@given(st.data())
def test_any_file_is_a_model_or_an_error(sound: bytes, data: st.DataObject) -> None:
    """With numbers that lie: counts, lengths, types, shapes, offsets. Most of them stand in the header."""
    header = sound.index(b"output_norm") + 1000
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, header))
        written = data.draw(NUMBERS.map(struct.Struct("<I").pack) | LENGTHS.map(struct.Struct("<Q").pack))
        damaged[at : at + len(written)] = written
    cut = data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))
    read_or_refused(bytes(damaged[:cut]))


def read_or_refused(file: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, folder = Path(name, "model.gguf"), Path(name, "out")
        path.write_bytes(file)
        folder.mkdir()
        tracemalloc.start()
        try:
            convert(path, folder)
        except ModelLoadError as error:
            assert error.suggestions
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY
