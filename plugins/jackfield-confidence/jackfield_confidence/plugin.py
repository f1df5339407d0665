"""The plugin, as the server plugs it in."""

import logging
from collections.abc import Mapping, Sequence

import click
from prometheus_client import CollectorRegistry, Histogram
from pydantic import BaseModel

from jackfield.hooks import (
    Confidence,
    Event,
    JsonObject,
    LogRecord,
    Outcome,
    RequestInfo,
    Server,
    Signal,
    TokenEvent,
    hookimpl,
)
from jackfield_confidence.commands import confidence as commands
from jackfield_confidence.factors import Tokens, factors
from jackfield_confidence.question import Question, Questions
from jackfield_confidence.settings import Settings
from jackfield_confidence.store import Store
from jackfield_confidence.weights import DEFAULT, FITTED_ON, Weights

logger = logging.getLogger(__name__)

BUCKETS = tuple(tenth / 10 for tenth in range(1, 11))


class Plugin:
    """Says of every answer how far it can be trusted."""

    def __init__(self) -> None:
        self._settings = Settings()
        self._server: Server | None = None
        self._scores: Histogram | None = None
        self._weights: Mapping[str, Weights] = {}
        self._questions = Questions()

    # --- When the server starts --------------------------------------------------------------------------------------

    @hookimpl
    def configure(self) -> type[BaseModel]:
        """The class of the settings."""
        return Settings

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        """``jackfield confidence``."""
        cli.add_command(commands)

    @hookimpl
    def token_signals(self) -> set[Signal]:
        """Each token's own log probability is all that the factors are made of."""
        return {"logprob"}

    @hookimpl
    def register_metrics(self, registry: CollectorRegistry) -> None:
        """How scores are distributed."""
        self._scores = Histogram(
            "jackfield_confidence_score", "Scores of answers.", ["model_name"], buckets=BUCKETS, registry=registry
        )

    @hookimpl
    async def startup(self, server: Server, config: Settings | None) -> None:
        """Begin with these settings, and with what has been calibrated."""
        self._server = server
        self._settings = config or Settings()
        found = Store(server.data_dir).all()
        self._weights = {model: calibration.weights for model, calibration in found.items()}
        for model in server.models():
            if model.id != FITTED_ON and model.id not in self._weights:
                logger.warning(
                    "Confidence scores of %s tell better answers from worse ones at best, and are no probabilities: "
                    "the default weights are fitted to the starter model. Grade some answers, then run: "
                    "jackfield confidence calibrate FILE --model %s",
                    model.id,
                    model.id,
                )

    # --- Once a request ----------------------------------------------------------------------------------------------

    @hookimpl
    async def transform_request(self, body: JsonObject, request: RequestInfo) -> None:
        """Remember the question until it is answered; the request stays as it is."""
        self._questions.remember(request.id, Question.of(body, self._settings.question_words))

    @hookimpl
    async def log_record(self, record: LogRecord) -> None:
        """Forget it."""
        if record.kind in ("completed", "failed", "cancelled"):
            self._questions.forget(record.request.id)

    @hookimpl
    def score_confidence(
        self, request: RequestInfo, tokens: Sequence[TokenEvent], text: str, outcome: Outcome
    ) -> Confidence | None:
        """The score, and what it is made of; None for an answer without tokens."""
        said = Tokens.of(tokens, outcome.ended_by)
        if said is None:
            return None
        found = factors(said, text, outcome, self._questions.of(request.id))
        score = round(self._weights.get(request.model, DEFAULT).score(found), 4)
        self._tell(request, outcome, score)
        return Confidence(score, self._settings.label(score), found)

    def _tell(self, request: RequestInfo, outcome: Outcome, score: float) -> None:
        if self._scores is not None:
            # Only models that are served get as far as an answer, so there are few labels.
            self._scores.labels(request.model).observe(score)
        if self._server is not None and score < self._settings.event_below:
            self._server.emit(
                Event(
                    "low_confidence",
                    "warning",
                    f"An answer of {request.model} has a confidence of {score:.2f}.",
                    model=request.model,
                    request_id=request.id,
                    data={"score": score, "choice": outcome.choice},
                )
            )
