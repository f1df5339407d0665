"""The plugin's settings: ``[plugins.notify]`` of the server's TOML file."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FilePath, SecretStr, ValidationError, model_validator

from jackfield.errors import ConfigurationError
from jackfield_notify import webhook
from jackfield_notify.documents import refusal
from jackfield_notify.preferences import Preferences
from jackfield_notify.targets import services
from jackfield_notify.targets.provider_token import read_key

APNS_HOSTS = {"production": "https://api.push.apple.com", "sandbox": "https://api.sandbox.push.apple.com"}


def _http_url(secret: SecretStr) -> SecretStr:
    url = secret.get_secret_value()
    if not url.startswith(("http://", "https://")) or not url.partition("://")[2].strip("/"):
        raise ValueError("it must begin with https:// or http:// and name a host")
    return secret


def _signing_secret(secret: SecretStr) -> SecretStr:
    try:
        webhook.key(secret.get_secret_value())
    except ValueError as error:
        raise ValueError(f"{error}; make one with 'jackfield notify secret'") from None
    return secret


def _apprise_url(secret: SecretStr) -> SecretStr:
    if not services.understands(secret.get_secret_value()):
        raise ValueError("Apprise does not understand it; its services are listed at https://appriseit.com/services/")
    return secret


def _apple_key(file: Path) -> Path:
    try:
        read_key(file)
    except ConfigurationError as error:
        raise ValueError(f"{error.message} {error.suggestions[0]}".rstrip(".")) from None
    return file


SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
Concurrency = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AppriseTarget(_Target):
    """Whatever Apprise speaks: ntfy, Slack, mail, Pushover and a hundred more."""

    type: Literal["apprise"]
    url: Annotated[SecretStr, AfterValidator(_apprise_url)]
    """Such as ``ntfy://ntfy.sh/my-topic``; it often holds a password."""
    concurrency: Concurrency = 1


class WebhookTarget(_Target):
    """Somebody's HTTP server."""

    type: Literal["webhook"]
    url: Annotated[SecretStr, AfterValidator(_http_url)]
    secret: SigningSecret
    """What messages are signed with: ``whsec_`` and base64."""
    previous_secret: SigningSecret | None = None
    """Signed with as well, until all receivers know the new one."""
    ca_file: FilePath | None = None
    """Certificates to trust instead of the system's."""
    concurrency: Concurrency = 4


class ApnsTarget(_Target):
    """An app on Apple devices, which register themselves at ``/v1/notifications/devices``."""

    type: Literal["apns"]
    key_file: Annotated[FilePath, AfterValidator(_apple_key)]
    """The key that Apple gave, ``AuthKey_....p8``."""
    key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{10}$")]
    team_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{10}$")]
    topic: Annotated[str, Field(min_length=1, max_length=255)]
    """The app's bundle id."""
    environment: Literal["production", "sandbox"] = "production"
    server: str | None = None
    """Another address than Apple's, such as a proxy's or a test's."""
    ca_file: FilePath | None = None
    keep_seconds: Annotated[int, Field(ge=0)] = 86400
    """How long Apple keeps a message for a device that is off."""
    concurrency: Concurrency = 16

    @property
    def host(self) -> str:
        """Where messages go."""
        return (self.server or APNS_HOSTS[self.environment]).rstrip("/")


AnyTarget = Annotated[AppriseTarget | WebhookTarget | ApnsTarget, Field(discriminator="type")]
TargetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Settings(BaseModel):
    """Everything that can be set, with its default."""

    # What is wrong may be a secret.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    targets: dict[TargetName, AnyTarget] = Field(default_factory=dict)
    """Who is told, by a name of your choice."""
    preferences: Preferences = Preferences()
    """What they are told, until somebody changes it through ``PUT /v1/notifications/settings``."""
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 15
    """How long a receiver may take to answer."""
    first_retry_seconds: Seconds = 5
    """After a failure; three times as long after each further one, less up to a half by chance."""
    longest_retry_seconds: Seconds = 7200
    give_up_seconds: Seconds = 3 * 86400
    """A message that could not be delivered for so long becomes a dead letter."""
    drain_seconds: Annotated[float, Field(ge=0, le=20)] = 3
    """At the end, how long the server waits for what is to be delivered."""
    most_queued: Annotated[int, Field(ge=1)] = 10_000
    keep_delivered: Annotated[int, Field(ge=0)] = 1000
    keep_dead: Annotated[int, Field(ge=1)] = 1000
    """Messages that may wait, and those kept to be looked at."""
    heartbeat_seconds: Seconds = 15
    """Of silence in a live stream, until it says that it lives."""
    stream_history: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Events kept in memory, for clients that come back and for slow ones."""
    most_streams: Annotated[int, Field(ge=1)] = 64
    """Clients of the live stream at the same time."""

    @model_validator(mode="after")
    def _known_targets(self) -> "Settings":
        if unknown := sorted(self.preferences.targets() - set(self.targets)):
            raise ValueError(f"the rules name the target {unknown[0]!r}, which is not among the targets")
        return self


def load(file: Path | None) -> Settings:
    """The settings in a TOML file, for commands, which run without a server; the defaults without one.

    Raises:
        ConfigurationError: it cannot be read, or is wrong.
    """
    table = _table(file) if file else {}
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        wrong = refusal(error, Settings)
        raise ConfigurationError(f"{wrong.message} See [plugins.notify] in {file}.") from None


def _table(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The configuration file {file} cannot be read: {error}", suggestions=("Check its path and syntax.",)
        ) from error
    plugins = document.get("plugins", {})
    table = plugins.get("notify", {}) if isinstance(plugins, dict) else {}
    return table if isinstance(table, dict) else {}
