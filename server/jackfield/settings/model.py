"""What can be set, and to what."""

from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from jackfield.errors import ConfigurationError
from jackfield.models.sizes import parse_size
from jackfield.settings.upstreams import Route, UpstreamSettings


def _size(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) and not value.isdecimal() else value
    except ConfigurationError as error:
        raise ValueError(error.message) from None


Size = Annotated[int, Field(ge=0), BeforeValidator(_size)]
"""Bytes, also written like ``25GB``."""


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


Place = Annotated[Path, AfterValidator(_expanded)]
"""A file or folder, also written like ``~/keys.json``."""


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _names(value: Any) -> Any:
    """Names as the environment has them: ``a,b``, or ``none``."""
    if not isinstance(value, str):
        return value
    return [] if value.strip() == "none" else [name.strip() for name in value.split(",") if name.strip()]


def _pairs(value: Any) -> Any:
    """Pairs as the environment has them: ``a=b,c=d``."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("pairs are written NAME=VALUE, with commas between them")
    return {name.strip(): model.strip() for name, _, model in pairs}


def _tables(value: Any) -> Any:
    """Models as the environment has them: ``a,b``."""
    return {name: {} for name in _names(value)} if isinstance(value, str) else value


MAX_PIXELS = 89_478_485
"""Beyond this Pillow takes an image for a decompression bomb, whatever is set."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]
KVBits = Annotated[Literal[4, 8] | None, BeforeValidator(_number)]


class ModelSettings(BaseModel):
    """One of several models: a table ``[models.NAME]``. What it leaves out is as for the server as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: str | None = None
    """What to serve under that name, as in ``model``; by default the name itself."""
    aliases: Names = ()
    """Other names that clients may use for it."""
    pinned: bool = False
    """Load it when the server starts, and keep it."""
    unload_after: Annotated[float, Field(gt=0)] | None = None
    """As for the server; by default what is set there."""
    adapters: Pairs = Field(default_factory=dict)
    """Adapters for it, as in ``adapters``, by the names that clients ask for."""
    dtype: Literal["auto", "float32", "keep"] | None = None
    """As for the server; by default what is set there."""
    context_length: Annotated[int, Field(ge=16)] | None = None
    """As for the server; by default what is set there."""
    kv_bits: KVBits = None
    """As for the server; by default what is set there."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    """As for the server; by default what is set there."""
    route: Route = ()
    """Who answers its requests, the first one that can: ``mlx``, upstreams, plugins' backends. Empty: ``mlx``."""


class Settings(BaseModel):
    """Everything that can be set, with its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    preset: str | None = None
    """A set of settings by name, such as ``qwen2.5-coder-32b``; what is set besides counts more."""
    model: str = "starter"
    """What to serve: ``starter``, a folder, a GGUF file, a Hugging Face name, or the name of a table in ``models``."""
    models: Annotated[dict[str, ModelSettings], BeforeValidator(_tables)] = Field(default_factory=dict)
    """More of them, loaded when somebody asks for them: a table ``[models.NAME]`` each."""
    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict)
    """Other servers that may answer for models whose ``route`` names them: a table ``[upstreams.NAME]`` each."""
    aliases: Pairs = Field(default_factory=dict)
    """Other names for models, for clients that cannot be told which to ask for: ``gpt-4o-mini = "starter"``."""
    unload_after: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a model that nobody has asked for leaves memory; by default when others need the room."""
    adapters: Pairs = Field(default_factory=dict)
    """Adapters for ``model``, unless it has a table in ``models``: folders or Hugging Face names, by the names that
    clients ask for."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port to listen on; 0 takes any free one."""
    allowed_hosts: Names = ()
    """Names that the server may be reached by without a key, besides its address, localhost and the machine's own name;
    ``.example.com`` stands for all names below, ``*`` for any."""
    cors_origins: Names = ()
    """Sites whose pages may ask the server, such as ``https://chat.example.com``; ``*`` for all."""
    dtype: Literal["auto", "float32", "keep"] = "auto"
    """On a CPU: float32 weights are faster, ``keep`` leaves them as they are; ``auto`` looks at the memory."""
    parallelism: Literal["auto", "tensor", "pipeline"] = "auto"
    """How several processes under ``mlx.launch`` divide the model: every layer among all, or the layers; ``auto`` takes
    the first that is possible."""
    context_length: Annotated[int, Field(ge=16)] | None = None
    """Fewer tokens than the model could take, to save memory."""
    kv_bits: KVBits = None
    """Quantize keys and values, to 8 or 4 bits, so that more and longer requests fit."""
    memory_limit: Size | None = None
    """The most that weights, keys, values and caches may take; by default what the device has."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    """Requests that are answered at the same time; more wait."""
    max_queue: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait; one more is refused with 429."""
    prefix_cache_bytes: Size | None = None
    """Memory for the prompts seen before; by default a sixth of what is free once the model is loaded."""
    prefix_cache_disk_bytes: Size | None = None
    """The same on disk, where it outlives the server; by default 10 GB or a tenth of the free disk, 0 for none."""
    max_slowdown: Annotated[float, Field(gt=1)] = 2.0
    """How many times as long a stream's tokens may take while another request's prompt is processed."""
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    """A step of the engine that takes longer hangs, and the engine is started again."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long requests may go on once the server has been told to end."""
    heartbeat: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between comments in a stream."""
    keys_file: Place | None = None
    """Where API keys are; by default ``keys.json`` in the folder for data. As soon as it is there, all need a key."""
    open_to_network: bool = False
    """Serve beyond this machine although nobody needs a key."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 << 20
    """The largest request that is read."""
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """Connections at the same time; one more is refused with 503."""
    header_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a client may take for the headers of a request."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long it may take for its body, or for each part of it if it comes with 1000 bytes a second."""
    write_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long it may read nothing of an answer that waits for it."""
    max_images: Annotated[int, Field(ge=0)] = 20
    """Images in a request, for models that read them."""
    max_image_bytes: Size = 20 * 10**6
    """The largest file of an image."""
    max_image_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = 50 * 10**6
    """Pixels of an image as it is sent; it is scaled down to what the model takes."""
    max_image_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of an image; by default as many as the model takes, and a tenth of the memory can encode."""
    allow_remote_images: bool = False
    """Whether images are fetched from public servers that requests name."""
    store_responses: bool = False
    """Store what `/v1/responses` answers to requests that do not say ``store``, as OpenAI does."""
    stored_responses_bytes: Size = 256 << 20
    """How much of it is kept; what has not been used for longest goes first. 0 for none."""
    stored_responses_days: Annotated[float, Field(gt=0)] = 30.0
    """How long it is kept after it was last used."""
    cache_dir: Place = Path(platformdirs.user_cache_dir("jackfield"))
    """Where fetched and converted models are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged; `debug` has a line for each request, and why a plugin failed."""
    context_budget: Annotated[int, Field(ge=16)] | None = None
    """Conversations of more tokens are made shorter, by plugins that can; by default only those that do not fit."""
    tool_parser: str = "auto"
    """How models write tool calls: ``auto`` goes by the chat template; a format's name, or one that a plugin brings."""
    slow_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A first token that takes longer is an event, ``slow``."""
    only_plugins: Names | None = None
    """Just these plugins, and all of them, or the server does not start; by default whatever is installed. In the
    environment this is JACKFIELD_PLUGINS; ``none`` stands for no plugins."""
    disabled_plugins: Names = ()
    """Plugins that are not to be used."""
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Their settings: a table ``[plugins.NAME]`` each, in the file."""
    hook_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long a plugin may keep a request waiting at each hook."""
    slow_hook_seconds: Annotated[float, Field(gt=0)] = 60.0
    """The same for starting and ending, for preparing a model and for compressing a conversation."""
    max_plugin_failures: Annotated[int, Field(ge=1)] = 5
    """A plugin that fails so often in a row at one hook is disabled."""

    def of_model(self, name: str) -> "Settings":
        """The settings for one of the models, which ``model`` names then."""
        own = self.models.get(name, ModelSettings(adapters=self.adapters if name == self.model else {}))
        differing = own.model_dump(exclude={"source", "aliases", "pinned", "route"}, exclude_none=True)
        return self.model_copy(update={**differing, "model": own.source or name})
