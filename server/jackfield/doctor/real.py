"""A validation of a running server with real inference, which takes minutes and unloads the model on its way."""

import time
from collections.abc import Iterator

from jackfield.doctor.fallback import fallback_checks
from jackfield.doctor.finding import Finding, careful, failure, ok, skipped, warning
from jackfield.doctor.server import STORY, idle, server_checks
from jackfield.doctor.visit import Visit, refusal, text_of

PROMPTS = {
    "a question": "What is the capital of France?",
    "code": "Write a Python function that reverses a string.",
    "a long text": "What did the clockmaker do for a living?",
    "other scripts": "Übersetze ins Englische: 早上好, доброе утро, صباح الخير 🙂",
    "numbers": "Add 17 and 25, and say only the sum.",
}
STORIES = 40
"""Before the question of the long text, where so many fit."""
OTHER_TOKENS = 128
"""The answer's, the question's and the template's."""
UNTOLD_CONTEXT = 512
"""Tokens that all models take."""
RELEASED_SHARE = 0.8
"""So much of the weights has to be free after the model has been unloaded."""

TIMES = 50
"""So many requests that are wrong, and as many that are hung up on."""


def real_checks(visit: Visit, bandwidth: float | None = None) -> Iterator[Finding]:
    """Everything that a short visit looks at, and then what needs the server to itself."""
    findings = []
    for finding in server_checks(visit, bandwidth):
        findings.append(finding)
        yield finding
    if findings[-1].check in ("server", "key", "model"):
        return
    for name, check in CHECKS:
        yield from careful(name, lambda check=check: check(visit))  # type: ignore[misc]


def _kinds(visit: Visit) -> Iterator[Finding]:
    for kind in PROMPTS:
        yield from careful(f"prompt: {kind}", lambda kind=kind: _kind(visit, kind))  # type: ignore[misc]


def _kind(visit: Visit, kind: str) -> Iterator[Finding]:
    before = _stories(visit) if kind == "a long text" else ""
    # The last character may have been cut off in its middle.
    text = text_of(visit.chat(before + PROMPTS[kind], max_tokens=32)).strip().rstrip("\N{REPLACEMENT CHARACTER}")
    if not text:
        yield warning(f"prompt: {kind}", "The answer is empty.", "Ask it by hand, with more max_tokens.")
    elif "\N{REPLACEMENT CHARACTER}" in text:
        yield failure(f"prompt: {kind}", f"The answer has broken characters: {text[:60]!r}")
    else:
        yield ok(f"prompt: {kind}", repr(" ".join(text.split())[:60]))


def _stories(visit: Visit) -> str:
    """As much of a text as the model's context takes, and not more than is worth while."""
    length = visit.report().get("context_length") or UNTOLD_CONTEXT
    usage = visit.completion(STORY, max_tokens=1).get("usage") or {}
    fits = max(int(length) - OTHER_TOKENS, 0) // (usage.get("prompt_tokens") or len(STORY))
    return STORY * min(STORIES, fits)


def _capabilities(visit: Visit) -> Iterator[Finding]:
    capabilities = (visit.report().get("jackfield") or {}).get("capabilities") or []
    if "embeddings" in capabilities:
        vectors = visit.asked("/v1/embeddings", input=["a cat", "a kitten"])["data"]
        width = len(vectors[0]["embedding"])
        yield ok("embeddings", f"Vectors of {width} dimensions.", dimensions=width)
    if "fill_in_the_middle" in capabilities:
        fields = {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))\n"}
        text = visit.asked("/v1/completions", **fields, max_tokens=16, temperature=0)["choices"][0]["text"]
        yield ok("fill in the middle", repr(text[:60]))


def _memory(visit: Visit) -> Iterator[Finding]:
    """Unload the model, see its memory come back, and load it again."""
    weights = (visit.report().get("jackfield") or {}).get("weights_bytes")
    if not weights:
        yield skipped("memory", "The server holds no weights of this model: others answer it.")
        return
    held = visit.series("jackfield_device_memory_bytes")
    response = visit.post("/v1/models/unload", {"model": visit.model})
    if response.status_code != 200:
        told = refusal(response)[0] or response.status_code
        yield skipped("memory", f"The model cannot be unloaded: {told}")
        return
    started = time.perf_counter()
    visit.asked("/v1/models/load")
    seconds = time.perf_counter() - started
    yield ok("loading", f"Unloaded, and back in {seconds:.1f} s.", seconds=seconds)
    again = visit.series("jackfield_device_memory_bytes")
    if not held or not again:
        yield skipped("memory", "The metrics cannot be read: give a key with the scope 'metrics'.")
        return
    kept = again - weights
    figures = {"before_bytes": held, "after_bytes": again, "weights_bytes": weights}
    if kept > held - RELEASED_SHARE * weights and kept > weights / 2:
        yield failure("memory", f"{kept / 1e9:.2f} GB were not given back.", "Restart the server.", **figures)
    else:
        yield ok("memory", f"It was given back: {held / 1e9:.2f} GB before, {again / 1e9:.2f} GB now.", **figures)


def _recovery(visit: Visit) -> Iterator[Finding]:
    """Many requests that are wrong or hung up on, and one that has to be answered as before them."""
    before = visit.completion(STORY, max_tokens=8)["choices"][0]["text"]
    for number in range(TIMES):
        wrong = {"model": visit.model, "messages": [], "temperature": number}
        if (status := visit.post("/v1/chat/completions", wrong).status_code) != 400:
            yield failure("recovery", f"To a request without messages it answered {status} instead of 400.")
            return
        with visit.stream(STORY, max_tokens=500, ignore_eos=True) as chunks:
            next(chunks, None)
    started = time.perf_counter()
    after = visit.completion(STORY, max_tokens=8)["choices"][0]["text"]
    seconds = time.perf_counter() - started
    told = f"After {2 * TIMES} requests that were wrong or hung up on, the next took {seconds:.2f} s"
    if after != before:
        yield failure("recovery", f"{told}, and was answered differently: {after!r}.", "Look at the server's log.")
    elif not idle(visit):
        yield warning(
            "recovery", f"{told}, but requests still run; they may be somebody else's.", "Look at GET /metrics."
        )
    else:
        yield ok("recovery", f"{told}; all slots are free again.", seconds=seconds)


CHECKS = (
    ("prompts", _kinds),
    ("capabilities", _capabilities),
    ("memory", _memory),
    ("recovery", _recovery),
    ("fallback", fallback_checks),
)
