"""A running server: whether its answers are what they should be, and come as fast as they should."""

import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from jackfield.doctor.finding import Finding, careful, failure, ok, skipped, warning
from jackfield.doctor.samples import TEXTS
from jackfield.doctor.visit import Json, Visit, document, only_thinks, refusal, text_of

STORY = "Once upon a time, in a small village by the sea, there lived an old clockmaker. "
TOKENS = 48
"""Of the answers that are timed."""
STILL_THINKS = "The model cannot be kept from thinking, and its tokens did not reach for an answer."
COMPANY = 4
"""Requests at the same time."""
CITIES = ("Paris", "London", "Rome")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": CITIES}},
    "required": ["city"],
    "additionalProperties": False,
}
"""It comes to an end, whatever the model would like to write."""
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": SCHEMA, "strict": True},
}
SLOW_SHARE = 0.25
"""A server that reaches a smaller part of what memory allows is slow."""
SECONDS_TO_STOP = 20.0
SECONDS_TO_SPEAK = 10.0
"""For what takes no model."""


def server_checks(visit: Visit, bandwidth: float | None = None) -> Iterator[Finding]:
    """All of them; ``bandwidth`` is what the server's device reads in a second, in bytes, if that is known."""
    for name, check in FIRST:
        found = [*careful(name, lambda check=check: check(visit))]  # type: ignore[misc]
        yield from found
        if found[-1].verdict == "failure":
            return
    for name, check in CHECKS:
        yield from careful(name, lambda check=check: check(visit))  # type: ignore[misc]
    yield from careful("speed", lambda: _speed(visit, bandwidth))


def _reached(visit: Visit) -> Iterator[Finding]:
    started = time.perf_counter()
    visit.get("/health", SECONDS_TO_SPEAK)
    seconds = time.perf_counter() - started
    response = visit.get("/v1/models", SECONDS_TO_SPEAK)
    status, (told, suggestions) = response.status_code, refusal(response)
    elsewhere = "See where the server listens: jackfield serve says so."
    if status in (401, 403):
        advice = "Give a key with the scope 'inference' in the environment: JACKFIELD_API_KEY"
        yield failure("key", f"The server wants a key, and answered {status}.", advice)
    elif response.has_redirect_location:
        told = f"{visit.url} sends whoever asks on to {response.headers['location']}."
        yield failure("server", told, "Give the address where that ends.")
    elif told and suggestions:
        yield failure("server", f"{visit.url} answered {status}: {told}", *suggestions)
    elif status != 200:
        told = f" ({told})" if told else ""
        yield failure("server", f"{visit.url} is something else: it answers /v1/models with {status}{told}.", elsewhere)
    elif not isinstance(document(response).get("data"), list):
        yield failure("server", f"{visit.url} is something else: /v1/models lists no models.", elsewhere)
    elif not _ids(document(response)):
        yield failure("server", f"{visit.url} answers, and has no models.", "Have it serve one.")
    else:
        yield ok("server", f"{visit.url} answers, in {seconds * 1000:.1f} ms.", seconds=seconds)


def _ids(models: Json) -> list[str]:
    return [model["id"] for model in models["data"] if isinstance(model, dict) and "id" in model]


def _model(visit: Visit) -> Iterator[Finding]:
    ids = _ids(document(visit.get("/v1/models")))
    visit.model = visit.model or ids[0]
    if visit.model not in ids and visit.get(f"/v1/models/{visit.model}").status_code != 200:
        yield failure("model", f"There is no {visit.model} here.", f"Take one of: {', '.join(ids)}.")
        return
    # One that cannot be loaded would fail at everything that follows.
    visit.completion("Hi", max_tokens=1)
    yield ok("model", f"{visit.model}, of {len(ids)}: {', '.join(ids)}.")


def _ready(visit: Visit) -> Iterator[Finding]:
    response = visit.get("/ready")
    if response.status_code == 200:
        yield ok("ready", "It says that it can answer.")
    elif response.status_code == 404:
        yield skipped("ready", "It does not say: it is another kind of server.")
    else:
        told = refusal(response)[0] or response.status_code
        yield failure("ready", f"It says {told}", "Look at the server's log.")


def _tokens(visit: Visit) -> Iterator[Finding]:
    if visit.post("/v1/tokenize", {"model": visit.model, "prompt": "Hi"}).status_code == 404:
        yield skipped("tokens", "It does not tell them: it is another kind of server.")
        return
    for text in TEXTS:
        tokens = visit.asked("/v1/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        if visit.asked("/v1/detokenize", tokens=tokens)["prompt"] != text:
            yield failure("tokens", f"{text!r} does not come back.", "Compare tokenizer.json with the original's.")
            return
    yield ok("tokens", "Texts come back from their tokens as they went in.")


def _answers(visit: Visit) -> Iterator[Finding]:
    answer = visit.chat("Say hello.", max_tokens=24)
    text, usage = text_of(answer), answer.get("usage") or {}
    parts, total = ("prompt_tokens", "completion_tokens"), usage.get("total_tokens", 0)
    if sum(usage.get(name, 0) for name in parts) != total:
        yield failure("answers", f"The usage does not add up: {usage}.")
    elif leaked := _leaked(visit, text):
        yield failure("answers", f"{leaked!r} leaks into the text.", "Mark it as special in tokenizer.json.")
    elif not text.strip():
        yield warning("answers", "The answer is empty.", "See whether the chat template suits the model.")
    else:
        yield ok("answers", f"It answers: {_short(text)}")


def _leaked(visit: Visit, text: str) -> str | None:
    info = document(visit.get(f"/v1/tokenizer_info?model={visit.model}"))
    marks = [info.get(name) for name in ("bos_token", "eos_token")]
    return next((mark for mark in marks if mark and mark in text), None)


def _stops(visit: Visit) -> Iterator[Finding]:
    whole = visit.completion(STORY, max_tokens=24)["choices"][0]["text"]
    middle = whole[len(whole) // 2 :].strip()[:4]
    if not middle:
        yield skipped("stop strings", "The answer is too short.")
        return
    choice = visit.completion(STORY, max_tokens=24, stop=[middle])["choices"][0]
    if choice["text"] != whole[: whole.index(middle)] or choice["finish_reason"] != "stop":
        yield failure("stop strings", f"The answer did not end before {middle!r}: {_short(choice['text'])}")
    else:
        yield ok("stop strings", "Answers end before them.")


def _streams(visit: Visit) -> Iterator[Finding]:
    whole = visit.completion(STORY, max_tokens=24)["choices"][0]["text"]
    streamed = visit.streamed(STORY, max_tokens=24)
    if streamed.text != whole:
        yield failure("streams", f"Streamed, the answer is another one: {_short(streamed.text)}")
    elif streamed.pieces < 2 or not streamed.usage:
        yield failure("streams", f"It came in {streamed.pieces} pieces, with the usage {streamed.usage}.")
    else:
        yield ok("streams", f"The same text comes piece by piece: {streamed.pieces} of them.")


def _structure(visit: Visit) -> Iterator[Finding]:
    asked = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = visit.chat("In which city is the Eiffel Tower? As JSON.", response_format=asked, max_tokens=64)
    text = answer["choices"][0]["message"].get("content") or ""
    if _holds(text):
        yield ok("JSON schema", f"It holds: {_short(text)}")
    elif only_thinks(answer):
        yield skipped("JSON schema", STILL_THINKS)
    else:
        yield failure("JSON schema", f"It does not hold: {_short(text)}")


def _holds(text: str) -> bool:
    """Whether it is of the schema."""
    try:
        return json.loads(text)["city"] in CITIES
    except (ValueError, KeyError, TypeError):
        return False


def _tools(visit: Visit) -> Iterator[Finding]:
    answer = visit.chat("What is the weather in Paris?", tools=[TOOL], tool_choice="required", max_tokens=96)
    calls = answer["choices"][0]["message"].get("tool_calls") or []
    if not calls and only_thinks(answer):
        yield skipped("tool calls", STILL_THINKS)
        return
    if not calls:
        yield failure("tool calls", "There was none, although one was required.", "See tool_parser in docs/api.md.")
        return
    function = calls[0]["function"]
    held = function["name"] == "get_weather" and _holds(function["arguments"])
    told = f"{function['name']}({function['arguments']})"
    yield ok("tool calls", f"{told}.") if held else failure("tool calls", f"{told} does not fit the tool.")


def _cache(visit: Visit) -> Iterator[Finding]:
    prompt = f"{secrets.token_hex(8)} {STORY * 20}"
    first, second = (visit.streamed(prompt, max_tokens=2) for _ in range(2))
    cached = (second.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    count = second.usage.get("prompt_tokens", 0)
    told = f"Asked again, {cached} of {count} tokens were cached: {first.first_seconds:.2f} s, then "
    told += f"{second.first_seconds:.2f} s to the first token."
    figures = {"cached_tokens": cached, "prompt_tokens": count, "first": first.first_seconds}
    if cached:
        yield ok("prefix cache", told, **figures, second=second.first_seconds)
    else:
        yield warning("prefix cache", told, "Give it memory: prefix_cache_bytes.", **figures)


def _hang_up(visit: Visit) -> Iterator[Finding]:
    if visit.series("jackfield_num_requests_running") is None:
        yield skipped("hanging up", _unmeasured(visit))
        return
    with visit.stream(STORY, max_tokens=2000, ignore_eos=True) as chunks:
        next(chunks, None)
    if idle(visit):
        yield ok("hanging up", "A client that hangs up stops its work.")
    else:
        yield warning("hanging up", "Requests still run; they may be somebody else's.", "Look at GET /metrics.")


def _unmeasured(visit: Visit) -> str:
    """Why a number is not there."""
    status = visit.get("/metrics").status_code
    if status in (401, 403):
        return "The metrics cannot be read: give a key with the scope 'metrics'."
    if status != 200:
        return f"The server has no metrics: it answered {status}."
    return "The metrics tell nothing of this model: other servers answer it."


def idle(visit: Visit) -> bool:
    """Whether nothing runs any more, before long; also where that cannot be known."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    while visit.series("jackfield_num_requests_running"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _errors(visit: Visit) -> Iterator[Finding]:
    wrong: list[tuple[str, Json | bytes, int]] = [
        ("half a document", b'{"model": ', 400),
        ("a model that is not there", {"model": "no-such-model", "prompt": "Hi"}, 404),
        ("an unknown field", {"model": visit.model, "prompt": "Hi", "no_such_field": 1}, 400),
    ]
    # Of models that others answer it is not known.
    if length := visit.report().get("context_length"):
        wrong.append(("a prompt that is too long", {"model": visit.model, "prompt": [0] * (length + 1)}, 400))
    for told, body, status in wrong:
        response = visit.post("/v1/completions", body)
        if response.status_code != status or not refusal(response)[0]:
            yield failure("errors", f"To {told} it answered {response.status_code} instead of {status}.")
            return
    visit.completion("Hi", max_tokens=1)
    yield ok("errors", "Wrong requests are told what is wrong, and the next one is answered.")


def _company(visit: Visit) -> Iterator[Finding]:
    def say(_: int) -> str:
        choice = visit.completion(STORY, max_tokens=TOKENS, temperature=1, seed=7, ignore_eos=True)["choices"][0]
        return str(choice["text"])

    alone, started = say(0), time.perf_counter()
    with ThreadPoolExecutor(COMPANY) as pool:
        together = list(pool.map(say, range(COMPANY)))
    speed = COMPANY * TOKENS / (time.perf_counter() - started)
    told = f"{COMPANY} at the same time get {speed:.1f} tokens a second in all"
    if set(together) == {alone}:
        yield ok("company", f"{told}, and each the text that it gets alone.", tokens_per_second=speed)
    else:
        yield warning("company", f"{told}, but not the text that one gets alone.", tokens_per_second=speed)


def _speed(visit: Visit, bandwidth: float | None) -> Iterator[Finding]:
    prompt = f"{secrets.token_hex(8)} {STORY * 20}"
    answer = visit.streamed(prompt, max_tokens=TOKENS, ignore_eos=True)
    reading = answer.usage.get("prompt_tokens", 0) / max(answer.first_seconds, 1e-9)
    speed = answer.tokens_per_second
    told = f"{speed:.1f} tokens a second, and {reading:,.0f} of a prompt"
    figures: dict[str, float] = {"tokens_per_second": speed, "prompt_tokens_per_second": reading}
    weights = (visit.report().get("jackfield") or {}).get("weights_bytes")
    if not bandwidth or not weights:
        yield ok("speed", f"{told}.", **figures)
        return
    possible = bandwidth / weights
    # Of experts only some are read for each token, so such models may be faster.
    told += f". Memory is read at {bandwidth / 1e9:.1f} GB/s here, all weights {possible:.0f} times a second"
    figures |= {"possible_tokens_per_second": possible}
    if speed < SLOW_SHARE * possible:
        advice = "See what else runs on this machine, and what jackfield doctor says of it without an address."
        yield warning("speed", f"{told}.", advice, **figures)
    else:
        yield ok("speed", f"{told}.", **figures)


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 60 else f"{shown[:59]}…")


FIRST = (("server", _reached), ("model", _model))
"""Where one of these fails, the others would, too."""
CHECKS = (
    ("ready", _ready),
    ("tokens", _tokens),
    ("answers", _answers),
    ("stop strings", _stops),
    ("streams", _streams),
    ("JSON schema", _structure),
    ("tool calls", _tools),
    ("prefix cache", _cache),
    ("hanging up", _hang_up),
    ("errors", _errors),
    ("company", _company),
)
"""All but these and the last."""
