"""How requests to models go: counted where it happens, on the event loop.

Labels have values of the server's own only: what a client writes (a path, a model) is one of those, or a word that
stands for all others.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from jackfield.errors import JackfieldError
from jackfield.metrics.buckets import REQUEST_SECONDS, TOKEN_SECONDS, TOKENS
from jackfield.models.registry import Registry

PLUGIN = "plugin"
"""Stands for the endpoint of what plugins ask models for."""

ENDPOINTS = frozenset(
    {
        "/chat/completions",
        "/completions",
        "/embeddings",
        "/fim/completions",
        "/infill",
        "/messages",
        "/responses",
        PLUGIN,
    }
)
"""Where models are asked for something; what is asked of other paths is not counted here."""

UNKNOWN = "unknown"
"""Stands for all models that are not served."""

CANCELLED = 499
"""What nginx writes into its log for a client that hung up."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one answer went, in seconds."""

    queue: float
    prefill: float
    decode: float


class RequestMetrics:
    """Owns the counters and histograms of requests. For the event loop's thread only.

    Args:
        collectors: where they are registered.
        registry: the models that are served.
    """

    def __init__(self, collectors: CollectorRegistry, registry: Registry) -> None:
        self._registry = registry
        self._requests = Counter(
            "jackfield_requests",
            "Requests to models, by the HTTP status that they ended with; 499 is a client that hung up.",
            ["endpoint", "model_name", "status"],
            registry=collectors,
        )
        self._answers = Counter(
            "jackfield_request_success",
            "Answers that came to their end, by why they did; a request may have several.",
            ["endpoint", "model_name", "finished_reason"],
            registry=collectors,
        )
        self._fallbacks = Counter(
            "jackfield_backend_fallbacks",
            "Requests that somebody else answered since this backend could not.",
            ["model_name", "backend"],
            registry=collectors,
        )

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"jackfield_{name}", text, [*labels, "model_name"], buckets=buckets, registry=collectors)

        self._first = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", REQUEST_SECONDS, "endpoint"
        )
        self._between = histogram("inter_token_latency_seconds", "Between an answer's tokens.", TOKEN_SECONDS)
        self._whole = histogram(
            "e2e_request_latency_seconds",
            "From a request's arrival to its end, of those that succeeded.",
            REQUEST_SECONDS,
            "endpoint",
        )
        self._queue = histogram("request_queue_time_seconds", "Time that an answer waited.", REQUEST_SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "Time that its prompt took.", REQUEST_SECONDS)
        self._decode = histogram("request_decode_time_seconds", "Time that its tokens took.", REQUEST_SECONDS)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request that succeeded.", TOKENS)
        self._generation = histogram("request_generation_tokens", "Generated tokens of an answer.", TOKENS)

    def model(self, asked: str) -> str:
        """The model or adapter that a request is for; the only model there is if it does not say."""
        try:
            return self._registry.meant(asked or None).name
        except JackfieldError:
            return UNKNOWN

    # --- Stations of a request -----------------------------------------------------------------------------------

    def fell_back(self, model: str, backend: str) -> None:
        """A backend that a plugin brings could not answer."""
        self._fallbacks.labels(self.model(model), backend).inc()

    def spoke(self, endpoint: str, model: str, seconds: float) -> None:
        """The first token came so long after the request."""
        self._first.labels(endpoint, self.model(model)).observe(seconds)

    def went_on(self, model: str, seconds: float) -> None:
        """Another token came so long after the one before."""
        self._between.labels(self.model(model)).observe(seconds)

    def finished(self, endpoint: str, model: str, reason: str, tokens: int, timing: Timing | None) -> None:
        """One answer, of how many tokens, came to its end; timing is the engine's, if it was the engine's answer."""
        name = self.model(model)
        self._answers.labels(endpoint, name, reason).inc()
        self._generation.labels(name).observe(tokens)
        if timing is not None:
            self._queue.labels(name).observe(timing.queue)
            self._prefill.labels(name).observe(timing.prefill)
            self._decode.labels(name).observe(timing.decode)

    # --- Its end -------------------------------------------------------------------------------------------------

    def succeeded(self, endpoint: str, model: str, seconds: float, prompt_tokens: int) -> None:
        """All of the request was answered, so long after it came."""
        name = self.model(model)
        self._whole.labels(endpoint, name).observe(seconds)
        self._prompt.labels(name).observe(prompt_tokens)
        self.ended(endpoint, model, 200)

    def ended(self, endpoint: str, model: str, status: int) -> None:
        """It ended, well or not."""
        if endpoint in ENDPOINTS:
            self._requests.labels(endpoint, self.model(model), str(status)).inc()
