"""Hello, world: most of what a plugin can do, in one file."""

from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, ConfigDict

from jackfield.hooks import Event, JsonObject, LogRecord, RequestInfo, Server, TextDelta, hookimpl

NAME = "hello-world"


class Settings(BaseModel):
    """What ``[plugins.hello-world]`` may say."""

    model_config = ConfigDict(extra="forbid")

    greeting: str = "Hello, {name}! "
    """What every answer begins with."""


class Plugin:
    """Begins every answer with a greeting, and counts them.

    Plain functions of a plugin run one after another, on its own thread, so nothing here needs a lock.
    """

    def __init__(self) -> None:
        self._settings = Settings()
        self._greeted: dict[str, set[int]] = {}
        """The choices of each running stream that have had their greeting."""

    # --- When the server starts ----------------------------------------------------------------------------------

    @hookimpl
    def configure(self) -> type[BaseModel]:
        """The server reads the settings, and refuses wrong ones by name."""
        return Settings

    @hookimpl
    def register_metrics(self, registry: CollectorRegistry) -> None:
        """A counter at ``/metrics``."""
        self._greetings = Counter(
            "jackfield_hello_world_greetings", "Answers that began with a greeting.", registry=registry
        )

    @hookimpl
    def startup(self, server: Server, config: Settings) -> None:
        """Keep the settings, and tell everybody who listens to events."""
        self._settings = config
        server.emit(Event("hello", "info", "The plugin hello-world greets."))

    # --- Once a request ------------------------------------------------------------------------------------------

    @hookimpl
    def transform_response(self, request: RequestInfo, response: JsonObject) -> JsonObject | None:
        """Greet in an answer that is sent whole; the response must not be changed in place."""
        if request.endpoint != "/chat/completions":
            return None
        return {**response, "choices": [self._greet(choice, request) for choice in response["choices"]]}

    def _greet(self, choice: JsonObject, request: RequestInfo) -> JsonObject:
        message = choice["message"]
        if not message["content"]:  # nothing but tool calls
            return choice
        return {**choice, "message": {**message, "content": self._greeting(request) + message["content"]}}

    # --- At every piece of a stream ------------------------------------------------------------------------------

    @hookimpl
    def transform_delta(self, request: RequestInfo, delta: TextDelta) -> TextDelta | None:
        """Greet in the first piece of each choice."""
        greeted = self._greeted.setdefault(request.id, set())
        if request.endpoint != "/chat/completions" or not delta.text or delta.choice in greeted:
            return None
        greeted.add(delta.choice)
        return TextDelta(delta.choice, self._greeting(request) + delta.text)

    @hookimpl
    def log_record(self, record: LogRecord) -> None:
        """Forget a request that has ended, however it did."""
        if record.kind in ("completed", "failed", "cancelled"):
            self._greeted.pop(record.request.id, None)

    def _greeting(self, request: RequestInfo) -> str:
        """For whom the client names: ``"jackfield": {"hello-world": {"name": "Ada"}}``."""
        self._greetings.inc()
        name = str(request.options.get(NAME, {}).get("name", "world"))
        return self._settings.greeting.replace("{name}", name)
