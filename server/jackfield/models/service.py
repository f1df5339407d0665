"""From a model folder to a model that answers: its engine, loaded as often as need be, within a memory plan."""

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from jackfield.engine.adapters import NONE, Adapters
from jackfield.engine.blocks import stateful
from jackfield.engine.disk_cache import DiskCache, identity_of
from jackfield.engine.images import ImageEncoder
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import Adapter
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.engine.thread import Engine
from jackfield.engine.trials import alone
from jackfield.errors import ModelLoadError
from jackfield.events import EventBus
from jackfield.group.likeness import Likeness
from jackfield.group.member import Member
from jackfield.hooks.engine_side import EngineHooks, UnpreparedError
from jackfield.models import cpu
from jackfield.models.adapter_file import read_adapter
from jackfield.models.adapter_folder import adapter_bytes
from jackfield.models.adapters import install
from jackfield.models.architecture import from_folder
from jackfield.models.device import Device, describe, detect_device, load_blas
from jackfield.models.division import Division
from jackfield.models.embedding import read_embedding_spec
from jackfield.models.folder import read_json
from jackfield.models.hub_adapter import local_adapter
from jackfield.models.loading import Network, load_network
from jackfield.models.memory import host_memory
from jackfield.models.plan import MemoryPlan, plan_architecture, plan_network
from jackfield.models.quantized import recipe
from jackfield.models.registry import ServedModel
from jackfield.models.sharding import HalfDividedError, Part, shard
from jackfield.models.tokenizer import Tokenizer
from jackfield.settings import Settings
from jackfield.vision import decoding
from jackfield.vision.processor import ImageProcessor, processor_for
from jackfield.vision.reader import ImageLimits, ImageReader

DISK_CACHE_BYTES = 10 * 10**9
DISK_CACHE_SHARE = 10
"""The prefix cache takes one part in so many of the free disk, and no more than DISK_CACHE_BYTES."""

Tell = Callable[[str], None]
"""Shows a line to whoever started the server."""


async def open_model(
    settings: Settings,
    folder: Path,
    events: EventBus,
    tell: Tell,
    hooks: EngineHooks | None = None,
    *,
    name: str | None = None,
    share: int | None = None,
    member: Member | None = None,
) -> ServedModel:
    """Load the model in ``folder`` and generate a first token with it.

    Args:
        settings: the model's.
        folder: where its files are.
        events: who hears when it fails.
        tell: shows how much memory it takes.
        hooks: may prepare it.
        name: what clients call it; by default it is named after where it comes from.
        share: bytes that it may take, where it is not alone.
        member: this process's part in a group, if it has a part of the model only.

    Raises:
        ModelLoadError: it cannot be served.
        GroupError: the group does not come together.
    """
    # Not on the event loop: a large vocabulary takes most of a second.
    tokenizer = await asyncio.to_thread(Tokenizer, folder)
    name = name or model_id(settings.model)
    embedding = await asyncio.to_thread(read_embedding_spec, folder, name, tokenizer)
    load = SchedulerLoader(settings, folder, tell, hooks, share=share, member=member)
    engine = Engine(
        load,
        settings.max_batch + settings.max_queue,
        stall_seconds=settings.stall_seconds,
        events=events,
        name=name,
        overdue=hooks.overdue if hooks else lambda _: None,
    )
    await engine.start()
    served = ServedModel(
        id=name,
        tokenizer=tokenizer,
        engine=engine,
        context_length=load.plan.context_length,
        vocabulary=load.vocabulary,
        defaults=read_json(folder / "generation_config.json"),
        images=_image_reader(load.images, tokenizer, settings, tell),
        embedding=embedding.with_width(load.embedding_width),
        plan=load.plan,
    )
    served.adapted = {name: served.with_adapter(name, adapter) for name, adapter in load.adapters.items()}
    return served


def _image_reader(
    processor: ImageProcessor | None, tokenizer: Tokenizer, settings: Settings, tell: Tell
) -> ImageReader | None:
    """Reads images as far as the settings allow; None if the model, or its tokenizer, does not know any."""
    if processor is None:
        return None
    if len(tokenizer.encode(processor.expand(processor.placeholder, [1]), special=False)) != 3:
        tell(f"Images are refused: this model's tokenizer does not have {processor.placeholder} and its companions.")
        return None
    if not decoding.available():
        tell("Images are refused as long as Pillow is missing: pip install 'jackfield[vision]'.")
    limits = ImageLimits(
        settings.max_images, settings.max_image_bytes, settings.max_image_pixels, settings.allow_remote_images
    )
    return ImageReader(processor, limits)


def plan_folder(settings: Settings, folder: Path, total: int) -> MemoryPlan:
    """What the model in ``folder`` would take of so many bytes, without loading it.

    Raises:
        ModelLoadError: it cannot be served, or does not fit.
    """
    kind = detect_device(load_blas()).kind
    options = plan_options(settings)
    plan = plan_architecture(from_folder(folder, kind), kind, total, dtype=settings.dtype, **options)
    adapters = sum(map(adapter_bytes, adapter_folders(settings).values()))
    return replace(plan, weights=plan.weights + adapters).fitting()


def adapter_folders(settings: Settings) -> dict[str, Path]:
    """Where the settings' adapters are, which have been fetched before.

    Raises:
        ModelLoadError: one has not.
    """
    folders = {name: local_adapter(source) for name, source in settings.adapters.items()}
    if missing := [source for name, source in settings.adapters.items() if folders[name] is None]:
        raise ModelLoadError(
            f"The adapter {missing[0]} is not here any more.",
            suggestions=(f"Download it again: jackfield models pull {missing[0]}",),
        )
    return {name: folder for name, folder in folders.items() if folder is not None}


def plan_options(settings: Settings) -> dict[str, Any]:
    """What the settings say about memory, as the planner wants it."""
    return {
        "context_length": settings.context_length,
        "slots": settings.max_batch,
        "kv_bits": settings.kv_bits,
        "prefix_cache": settings.prefix_cache_bytes,
        "memory_limit": settings.memory_limit,
        "image_tokens": settings.max_image_tokens,
    }


def model_id(name: str) -> str:
    """What clients call the model: a Hugging Face name as it is, else the folder's or file's own name."""
    if (made := recipe(name)) is not None:
        return f"{model_id(made.source)}:{made.tag}"
    path = Path(name)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else name


class SchedulerLoader:
    """Makes the engine's scheduler, on the engine's thread, and again whenever that thread has to be replaced."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        tell: Tell,
        hooks: EngineHooks | None = None,
        *,
        share: int | None = None,
        member: Member | None = None,
    ) -> None:
        self._settings = settings
        self._share = share
        self._member = member
        self._folder = folder
        self._tell = tell
        self._hooks = hooks
        self._thread: threading.Thread
        self._device: Device
        self._network: Network | None = None
        self._disk: DiskCache | None = None
        self._adapters: Adapters | None = None
        self._part: Part | None = None
        """What the group has left this process of the network."""
        self._division: Division | None = None
        """What the group has made of the network, if there are adapters to be put onto it."""
        self.adapters: dict[str, Adapter] = {}
        """The model's adapters by their names."""
        self.plan: MemoryPlan
        self.vocabulary: int
        self.images: ImageProcessor | None = None
        """How the model wants images, if it reads any."""
        self.embedding_width: int | None
        """Dimensions of vectors; None if the network makes none."""

    def __call__(self, fresh: bool = False) -> Scheduler:
        """Load the model, or take it over from the thread before, unless it is to be read from disk afresh.

        Raises:
            ModelLoadError: it cannot be served.
        """
        self._thread = threading.current_thread()
        if self._member is not None:
            likeness = Likeness.of(self._folder, adapter_folders(self._settings), self._plugins)
            self._settings = self._member.join(self._settings, likeness)
        if self._network is not None:
            self._clean_up(fresh=fresh)
        network = self._network = self._network or self._read()
        encoder = ImageEncoder(network.model, self.images.own) if self.images else None
        adapters = self._adapters or NONE
        judge = self._member.judge if self._member else alone
        layers = self._part.layers if self._part else None
        kv_bits = self._settings.kv_bits
        runner = Runner(network.model, kv_bits, images=encoder, adapters=adapters, judge=judge, layers=layers)
        self.vocabulary = runner.vocabulary
        self.embedding_width = runner.pooler.width if runner.pooler else None
        self._disk = self._disk or self._open_disk(runner, network.dtype)
        guard = MemoryGuard(self.plan.kv_pool, self.plan.workspace, self._free)
        budget, state = self.plan.prefix_cache, stateful(runner.start())
        cache = PrefixCache(budget, self._disk, stateful=state, counted=runner.counted, least=self._least)
        pace = PrefillPace(slowdown=self._settings.max_slowdown)
        make = Scheduler if self._member is None else self._member.scheduler
        return make(runner, cache, self._settings.max_batch, guard, pace)

    def _clean_up(self, *, fresh: bool) -> None:
        """Let go of what the thread before leaves behind: there may be no room for both."""
        if fresh:
            self._network = None
        gc.collect()
        mx.clear_cache()

    def _read(self) -> Network:
        try:
            return self._load()
        except UnpreparedError:
            # What that plugin may have left in pieces is gone, and so is the plugin.
            return self._read()
        except HalfDividedError as error:
            self._tell(f"The layers of this model cannot be shared out ({error}), so it becomes a pipeline.")
            self._settings = self._settings.model_copy(update={"parallelism": "pipeline"})
            return self._read()

    def _load(self) -> Network:
        settings = self._settings
        self._device = detect_device(load_blas())
        network = load_network(
            self._folder,
            self._device,
            dtype=settings.dtype,
            prepare=self._prepare,
            shard=self._shard if self._member else None,
            memory_limit=self._limit(),
        )
        if threading.current_thread() is not self._thread:
            raise RuntimeError("given up while loading: another thread has taken over")
        network = self._adapted(network)
        self._tell(describe(self._device, network.dtype))
        plan = self._plan(network)
        self.plan = self._fitting(self._member.agree(plan, self._plugins) if self._member else plan)
        for line in self.plan.lines():
            self._tell(line)
        own = processor_for(network.model, network.config)
        self.images = ImageProcessor(own, self.plan.image_tokens) if own else None
        return network

    def _adapted(self, network: Network) -> Network:
        """The network with the adapters that the settings name, which count as weights."""
        files = [read_adapter(name, folder) for name, folder in adapter_folders(self._settings).items()]
        if not files:
            return network
        self._adapters, self.adapters = install(network.model, files, self._division)
        arrays: dict[str, mx.array] = dict(tree_flatten(network.model.parameters()))
        return replace(network, nbytes=sum(array.nbytes for array in arrays.values()))

    def _prepare(self, *, model: nn.Module, config: dict[str, Any], device: Device) -> nn.Module:
        prepared = cpu.prepare(model=model, config=config, device=device)
        return self._hooks.prepare_model(model=prepared, config=config, device=device) if self._hooks else prepared

    @property
    def _plugins(self) -> list[str]:
        """Those that prepare the model."""
        return self._hooks.preparing if self._hooks else []

    def _shard(self, model: nn.Module, config: dict[str, Any]) -> None:
        if self._member is not None:
            wanted = None if self._settings.parallelism == "auto" else self._settings.parallelism
            collective = self._member.collective
            group = collective.group
            part = self._part = shard(model, config, group, wanted, sends=collective.sends)
            if self._settings.adapters:
                self._division = Division(model, lambda other: shard(other, config, group, part.kind), group)
            self._tell(f"Rank {group.rank()} of {group.size()}: {part.kind} parallelism")

    def _limit(self, loaded: int = 0) -> int | None:
        """Bytes that the model may take, if that is less than there is; so many of its weights are loaded."""
        limits = [self._settings.memory_limit, self._share]
        if self._member is not None and self._member.share > 1:
            there_is = host_memory().available if self._device.kind == "cpu" else self._device.memory_bytes
            # On a CPU what has been loaded is not available any more.
            limits.append(there_is // self._member.share + (loaded if self._device.kind == "cpu" else 0))
        return min((limit for limit in limits if limit is not None), default=None)

    def _plan(self, network: Network) -> MemoryPlan:
        limit, layers = self._limit(network.nbytes), self._part.layers if self._part else None
        options = plan_options(self._settings) | {"memory_limit": limit, "layers": layers}
        return plan_network(network, self._device.kind, self._device.memory_bytes, **options)

    def _fitting(self, plan: MemoryPlan) -> MemoryPlan:
        fitting = plan.fitting()
        if fitting is not plan:
            self._tell(plan.shortage())
        return fitting

    def _open_disk(self, runner: Runner, dtype: str) -> DiskCache | None:
        settings = self._settings
        budget = settings.prefix_cache_disk_bytes
        if budget is None:
            settings.cache_dir.mkdir(parents=True, exist_ok=True)
            budget = min(DISK_CACHE_BYTES, shutil.disk_usage(settings.cache_dir).free // DISK_CACHE_SHARE)
        if not self._least(int(budget > 0)):
            return None
        computed = (self._device.kind, dtype, str(settings.kv_bits), *held_by(runner), *self._place)
        return DiskCache(settings.cache_dir / "prefixes", budget, identity_of(self._folder, *computed))

    @property
    def _least(self) -> Callable[[int], int]:
        """Says which is the least of the numbers that a group's processes have; all of them have to ask."""
        return self._member.collective.least if self._member else int

    @property
    def _place(self) -> list[str]:
        """Which part of the model this process has, if it has not all of it."""
        if self._member is None or self._part is None:
            return []
        collective = self._member.collective
        return [f"rank {collective.rank} of {collective.size}", self._part.kind]

    def _free(self) -> int:
        """Bytes that can be allocated now, by the machine's own figures and the user's limit."""
        held = mx.get_active_memory() + mx.get_cache_memory()
        limit = self._settings.memory_limit
        # What MLX keeps for later is free, too; but nobody in a group gives it back while others look.
        held -= mx.get_cache_memory() if self._member else 0
        share = self._member.share if self._member else 1
        machine = host_memory().available if self._device.kind == "cpu" else self._device.memory_bytes // share - held
        return machine if limit is None else min(machine, limit - held)


def held_by(runner: Runner) -> list[str]:
    """Kind, types and shapes of what each layer's cache holds of one token, which the weights' type does not tell."""
    caches = runner.start()
    # Shapes are known without evaluating anything.
    runner.model(mx.array([[0]]), cache=caches)
    return [f"{type(cache).__name__}: {_types(cache.state)}" for cache in caches]


def _types(state: Any) -> str:
    arrays: dict[str, Any] = dict(tree_flatten(state))
    return ", ".join(f"{array.dtype} {array.shape}" for array in arrays.values() if isinstance(array, mx.array))
