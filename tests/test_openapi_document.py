"""``openapi.yaml`` and ``jackfield.protocol`` say the same, and ``docs/api.md`` leaves nothing out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import EmbeddingCreateParams, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from canonical import Schema, canonical, difference
from contract import declared_routes, document, resolve, validator
from jackfield import errors
from jackfield.api.anthropic.envelope import envelope
from jackfield.protocol.anthropic import events as messages_events
from jackfield.protocol.anthropic.answer import MessageAnswer, TokenCount
from jackfield.protocol.anthropic.errors import MessagesErrorEnvelope
from jackfield.protocol.anthropic.request import MessagesRequest, TokenCountRequest
from jackfield.protocol.base import AnswerModel, RequestBody
from jackfield.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from jackfield.protocol.completions import Completion, CompletionChunk, CompletionRequest
from jackfield.protocol.embeddings import EmbeddingList, EmbeddingsRequest
from jackfield.protocol.errors import ErrorEnvelope
from jackfield.protocol.fim import FimCompletionRequest
from jackfield.protocol.infill import InfillAnswer, InfillChunk, InfillRequest
from jackfield.protocol.models import Model, ModelList
from jackfield.protocol.parsing import parse
from jackfield.protocol.plugins import PluginList
from jackfield.protocol.responses import events
from jackfield.protocol.responses.answer import DeletedResponse, ItemList, Response
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.protocol.status import Health, Ready
from jackfield.protocol.tokens import (
    ApplyTemplateRequest,
    Detokenized,
    DetokenizeRequest,
    TemplateApplied,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)

PATHS: dict[type[RequestBody], str] = {
    ChatCompletionRequest: "chat/completions",
    CompletionRequest: "completions",
    FimCompletionRequest: "fim/completions",
    InfillRequest: "infill",
    ResponseRequest: "responses",
    MessagesRequest: "messages",
    TokenCountRequest: "messages/count_tokens",
    EmbeddingsRequest: "embeddings",
    TokenizeRequest: "tokenize",
    DetokenizeRequest: "detokenize",
    ApplyTemplateRequest: "apply-template",
}
REQUESTS = list(PATHS)
RESPONSE_EVENTS: list[type[AnswerModel]] = [
    events.ResponseEvent,
    events.OutputItemEvent,
    events.ContentPartEvent,
    events.OutputTextDelta,
    events.OutputTextDone,
    events.ReasoningTextDelta,
    events.ReasoningTextDone,
    events.SummaryPartEvent,
    events.SummaryTextDelta,
    events.SummaryTextDone,
    events.ArgumentsDelta,
    events.ArgumentsDone,
    events.ErrorEvent,
]
MESSAGES_EVENTS: list[type[AnswerModel]] = [
    messages_events.MessageStart,
    messages_events.Ping,
    messages_events.ContentBlockStart,
    messages_events.ContentBlockDelta,
    messages_events.ContentBlockStop,
    messages_events.MessageDelta,
    messages_events.MessageStop,
]
ANSWERS: list[type[AnswerModel]] = [
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    InfillAnswer,
    InfillChunk,
    Response,
    DeletedResponse,
    ItemList,
    *RESPONSE_EVENTS,
    MessageAnswer,
    TokenCount,
    *MESSAGES_EVENTS,
    EmbeddingList,
    Tokens,
    Detokenized,
    TemplateApplied,
    TokenizerInfo,
    Model,
    ModelList,
    PluginList,
    Health,
    Ready,
    ErrorEnvelope,
    MessagesErrorEnvelope,
]
HEADERS = {"betas", "user_profile_id", "workspace_id"}
"""What Anthropic's SDK takes among the fields, and sends as headers."""
API_PAGE = Path(__file__).parent.parent / "docs" / "api.md"


def name_of(item: Any) -> str:
    return item.__name__ if isinstance(item, type) else str(item)


def test_the_document_is_valid_openapi_3_1() -> None:
    assert document()["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document()).iter_errors()] == []


# ---------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("model", REQUESTS, ids=name_of)
def test_requests_agree(model: type[BaseModel]) -> None:
    assert difference(of_model(model.model_json_schema()), of_document(model.__name__)) == []


@pytest.mark.parametrize("model", ANSWERS, ids=name_of)
def test_answers_agree(model: type[AnswerModel]) -> None:
    ours = as_sent(model.model_json_schema(mode="serialization"))
    assert difference(of_model(ours), without_additional(of_document(model.__name__))) == []


def of_model(schema: Schema) -> list[Schema]:
    def resolve_here(member: Schema) -> Schema:
        return schema["$defs"][member["$ref"].rpartition("/")[2]] if "$ref" in member else member

    return canonical(schema, resolve_here)


def of_document(name: str) -> list[Schema]:
    return canonical({"$ref": f"#/components/schemas/{name}"}, resolve)


def as_sent(schema: Schema) -> Schema:
    """Pydantic does not know which defaults are sent, nor which nulls are not; the document leaves answers open."""
    classes = {answer.__name__: answer for answer in subclasses(AnswerModel)}
    for member in [schema, *schema.get("$defs", {}).values()]:
        answer = classes[member["title"]]
        del member["additionalProperties"]
        member["required"] = list({*member.get("required", []), *answer.always})
        for name in answer.never_null:
            member["properties"][name]["anyOf"].remove({"type": "null"})
    return schema


def subclasses(model: type[AnswerModel]) -> Iterator[type[AnswerModel]]:
    for child in model.__subclasses__():
        yield child
        yield from subclasses(child)


def without_additional(schema: Any) -> Any:
    """Answers are not closed in the document: a later version may say more."""
    assert '"additionalProperties": false' not in json.dumps(schema)
    return schema


def test_a_drift_is_seen() -> None:
    drifted = ChatCompletionRequest.model_json_schema()
    drifted["properties"]["temperature"]["anyOf"][0]["maximum"] = 3
    del drifted["properties"]["min_p"]
    drifted["properties"]["n"]["anyOf"].pop()
    drifted["properties"]["logit_bias"]["anyOf"][0]["patternProperties"] = {".*": {"type": "number"}}
    drifted["properties"]["reasoning_effort"]["anyOf"][0]["enum"].append("max")
    drifted["required"].append("n")
    said = "\n".join(difference(of_model(drifted), of_document("ChatCompletionRequest")))
    for part in ("temperature[1].maximum", "min_p", "properties.n", "required", "logit_bias", "reasoning_effort"):
        assert part in said


# ---------------------------------------------------------------------------------------- what clients may send


@pytest.mark.parametrize("model", REQUESTS, ids=name_of)
def test_fields_ignored_on_purpose_say_so(model: type[RequestBody]) -> None:
    said = {path for path, schema in described(model.__name__) if schema["description"].startswith("Ignored:")}
    assert said == set(model.ignored_on_purpose)


@pytest.mark.parametrize("model", REQUESTS, ids=name_of)
def test_refused_fields_say_so(model: type[RequestBody]) -> None:
    for path, schema in described(model.__name__):
        only_null = schema.get("type") == "null" or schema.get("enum") == ["", None]
        assert only_null == schema["description"].startswith("Refused:"), path


def described(name: str) -> Iterator[tuple[str, Schema]]:
    """The fields of a request and of its options for streams, text and thinking, by dotted path."""
    for field, schema in resolve({"$ref": f"#/components/schemas/{name}"})["properties"].items():
        found = resolve(schema)
        yield field, {"description": schema.get("description", ""), **found}
        if field in ("stream_options", "text", "reasoning", "thinking", "output_config"):
            given = next((one for one in found.get("anyOf", [found]) if "properties" in one), {"properties": {}})
            yield from ((f"{field}.{key}", {"description": "", **value}) for key, value in given["properties"].items())


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatCompletionRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
        (response_create_params.ResponseCreateParamsBase, ResponseRequest),
        (message_create_params.MessageCreateParamsBase, MessagesRequest),
        (beta_create_params.MessageCreateParamsBase, MessagesRequest),
        (message_count_tokens_params.MessageCountTokensParams, TokenCountRequest),
        (beta_count_params.MessageCountTokensParams, TokenCountRequest),
        (EmbeddingCreateParams, EmbeddingsRequest),
    ],
    ids=name_of,
)
def test_every_official_field_has_an_answer(official: Any, ours: type[BaseModel]) -> None:
    assert official.__annotations__.keys() - HEADERS - ours.model_fields.keys() == set()


@pytest.mark.parametrize("model", REQUESTS, ids=name_of)
def test_the_api_page_lists_every_field(model: type[RequestBody]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` +\| (\w+)", section(model), flags=re.MULTILINE))
    assert rows.keys() == model.model_fields.keys()
    schemas = dict(described(model.__name__))
    for field, policy in rows.items():
        prose = schemas[field]["description"]
        expected = next((word for word in ("refused", "ignored") if prose.startswith(word.title())), "honoured")
        assert policy == expected, field


def section(model: type[BaseModel]) -> str:
    _, _, rest = API_PAGE.read_text(encoding="utf-8").partition(f"## POST /v1/{PATHS[model]}\n")
    return rest.partition("\n## ")[0]


# ---------------------------------------------------------------------------------------- routes, errors, examples


def test_every_v1_route_is_also_there_without_the_prefix() -> None:
    routes = declared_routes()
    prefixed = {(method, path.removeprefix("/v1")) for method, path in routes if path.startswith("/v1/")}
    assert len(prefixed) == 21
    assert prefixed <= routes
    assert routes - prefixed - {(method, f"/v1{path}") for method, path in prefixed} == {
        ("GET", "/health"),
        ("HEAD", "/health"),
        ("GET", "/ready"),
        ("HEAD", "/ready"),
        ("GET", "/metrics"),
    }


def test_a_route_without_the_prefix_is_declared_as_the_one_with_it() -> None:
    declared = document()["paths"]
    for path in [path for path in declared if path.startswith("/v1/")]:
        short = declared[path.removeprefix("/v1")]
        assert declared[path].keys() == short.keys()
        assert declared[path].get("parameters") == short.get("parameters")
        for method in short.keys() - {"parameters"}:
            own = {"operationId", "summary", "description"}
            for key in (declared[path][method].keys() | short[method].keys()) - own:
                assert declared[path][method].get(key) == short[method].get(key), f"{method} {path} {key}"


def test_every_error_has_the_envelope() -> None:
    for name, response in document()["components"]["responses"].items():
        schema = response["content"]["application/json"]["schema"]["$ref"]
        is_error = schema.endswith("ErrorEnvelope")
        answers = {answer.__name__ for answer in ANSWERS} | {"StoredResponse"}
        assert is_error == (name not in answers)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/fim/completions",
        "/v1/infill",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    ],
)
def test_generation_declares_its_errors(path: str) -> None:
    responses = document()["paths"][path]["post"]["responses"]
    assert {"200", "400", "404", "405", "413", "429", "503", "504", "default"} <= responses.keys()
    for status in ("429", "503"):
        assert "Retry-After" in resolve(responses[status])["headers"]
    assert "x-should-retry" in resolve(responses["504"])["headers"]


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequestError("No.", param="n", code="invalid_value", suggestions=("Yes.",)),
        errors.ContextLengthExceededError(context_length=1, prompt_tokens=2),
        errors.ModelNotFoundError("a", ("b",)),
        errors.UnavailableError("Later."),
        errors.MemoryPressureError(),
        errors.DeadlineExceededError(),
        errors.JackfieldError("Oh."),
    ],
    ids=name_of,
)
def test_the_servers_errors_fit_the_envelope(error: errors.JackfieldError) -> None:
    validator("ErrorEnvelope").validate(error.envelope())
    ErrorEnvelope.model_validate(error.envelope())
    validator("MessagesErrorEnvelope").validate(json.loads(envelope(error, "req_1").to_json()))


def test_request_examples_are_accepted() -> None:
    for model in REQUESTS:
        body = document()["components"]["requestBodies"][model.__name__.removesuffix("Request")]
        body = body["content"]["application/json"]
        for example in body["examples"].values():
            validator(model.__name__).validate(example["value"])
            parse(model, json.dumps(example["value"]).encode())


def test_response_examples_are_what_is_sent() -> None:
    # One answer of this endpoint is the whole body.
    answers: dict[str, type[AnswerModel]] = {answer.__name__: answer for answer in ANSWERS} | {
        "InfillAnswers": InfillAnswer
    }
    for response in document()["components"]["responses"].values():
        for media in response["content"].values():
            name = media["schema"]["$ref"].rpartition("/")[2]
            for example in media["examples"].values():
                validator(name).validate(example["value"])
                value, answer = example["value"], answers.get(name)
                if answer is None:
                    value, answer = json.loads(value["data"]), chunk_of(name, json.loads(value["data"]))
                validator(answer.__name__).validate(value)
                assert json.loads(answer.model_validate(value).to_json()) == value


def chunk_of(event: str, data: dict[str, Any]) -> type[AnswerModel]:
    if event == "ResponseStreamEvent":
        return next(one for one in RESPONSE_EVENTS if data["type"] in types_of(one))
    if event == "MessagesEvent":
        return next(one for one in (*MESSAGES_EVENTS, MessagesErrorEnvelope) if data["type"] in types_of(one))
    schema = document()["components"]["schemas"][event]["properties"]["data"]
    *done, content = schema.get("anyOf", [schema])
    assert [member["const"] for member in done] == ([] if event == "InfillEvent" else ["[DONE]"])
    names = [member["$ref"].rpartition("/")[2] for member in content["contentSchema"]["anyOf"]]
    assert names[-1] == "ErrorEnvelope"
    chunks = (ChatCompletionChunk, CompletionChunk, InfillChunk)
    return {chunk.__name__: chunk for chunk in chunks}[names[0]]


def types_of(event: type[AnswerModel]) -> tuple[str, ...]:
    return get_args(event.model_fields["type"].annotation)


def test_the_events_of_a_response_are_all_there_are() -> None:
    data = document()["components"]["schemas"]["ResponseStreamEvent"]["properties"]["data"]
    names = [member["$ref"].rpartition("/")[2] for member in data["contentSchema"]["anyOf"]]
    assert names == [event.__name__ for event in RESPONSE_EVENTS]
    sent = {one for one in subclasses(events.Event) if not one.__name__.startswith("_")}
    assert sent == set(RESPONSE_EVENTS)
