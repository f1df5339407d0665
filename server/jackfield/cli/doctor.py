"""``jackfield doctor``: does a model fit, is this machine in order, does a server do what it should?"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from rich.console import Console

from jackfield import settings as configuration
from jackfield.address import place
from jackfield.models.device import import_mlx_lm, load_blas
from jackfield.models.sizes import parse_size
from jackfield.settings import Configuration

if TYPE_CHECKING:
    from jackfield.doctor.finding import Finding
    from jackfield.doctor.visit import Visit
    from jackfield.models.architecture import DeviceKind

DOES_NOT_FIT = 3
FAILED = 4
"""Exit statuses."""

PLACE = re.compile(r"([\w.-]+|\[[\da-f:]+\]):\d+(/v1)?/?", re.ASCII | re.IGNORECASE)
"""A host and a port."""

KEY = "JACKFIELD_API_KEY"
"""The variable that holds the key for a server that wants one: arguments can be seen by others."""

EPILOG = """\b
Examples:
  jackfield doctor                                  this machine, and the model that would be served
  jackfield doctor mlx-community/Qwen2.5-Coder-32B-Instruct-4bit --memory 48GB --device metal
  jackfield doctor --preset qwen2.5-coder-32b --memory 32GB --device metal
  jackfield doctor ./model --context-length 32768 --max-batch 4 --kv-bits 8
  jackfield doctor http://127.0.0.1:8080            a server that runs, in half a minute
  jackfield doctor --real http://127.0.0.1:8080     the same at length; unloads the model on its way
\b
Exit status: 0 if all is well, 3 if not even one sequence fits at full context, 4 if a check failed, 1 after an error.
\b
Keys of --json: model, origin, model_type, parameters, weights_type, model_context_length, downloaded, disk_bytes,
disk_free_bytes, device, device_kind, machine_bytes, and the plan: fits, total_bytes, weights_bytes, workspace_bytes,
kv_pool_bytes, prefix_cache_bytes, remaining_bytes, kv_bits, kv_bytes_per_token, state_bytes_per_sequence,
sequence_bytes, context_length, context_that_fits, slots, sequences_at_full_context, tokens_in_all, image_tokens,
advice. Of a server: url, model. Of both: checks, a list of objects with check, verdict, told, advice and figures.
null stands for what is not known.
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False, metavar="[MODEL|URL]")
@click.option("--real", is_flag=True, help="Validate a running server with real inference.")
@click.option("--ask", help="Which of the server's models to ask.  [default: the first one]")
@click.option("--preset", help="A model with settings that suit it, as for serve.")
@click.option("--memory", help="Plan for a machine with so much memory, as it is sold: 48GB (of the GPU for cuda).")
@click.option("--device", type=click.Choice(["metal", "cuda", "cpu"]), help="Of that machine.  [default: as here]")
@click.option("--context-length", type=int, help="Fewer tokens than the model could take.")
@click.option("--max-batch", type=int, help="Requests answered at the same time.  [default: 32]")
@click.option("--kv-bits", help="Quantize keys and values to 8 or 4 bits.")
@click.option("--dtype", help="On a CPU: auto, float32 or keep.  [default: auto]")
@click.option("--memory-limit", help="The most memory to use, such as 25GB.  [default: what the device has]")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file with settings.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(  # noqa: PLR0917 - options
    model: str | None,
    real: bool,
    ask: str | None,
    memory: str | None,
    device: str | None,
    config: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Check a machine, a model or a running server, and say what to do.

    MODEL is starter, a folder, a .gguf file or a Hugging Face name; nothing is downloaded but its config.json. It is
    told what fits in memory, and whether hardware, plugins, the port and the model's files are in order. Settings from
    the environment and from a file count as they do for serve.

    URL is a server, which is asked as its clients would ask it. A key for it is taken from JACKFIELD_API_KEY.
    """
    url = _url(model or "")
    found = configuration.read(flags if url else {**flags, "model": model}, config)
    if real or url:
        settings = found.settings
        _visit(url or f"http://{place(settings.host, settings.port)}", ask, real=real, as_json=as_json)
    else:
        # Memory modules have powers of two: what is sold as 48GB is 48GiB.
        machine = parse_size(memory, binary=True) if memory else None
        _diagnose(found, machine, cast("DeviceKind | None", device), as_json=as_json)


def _url(name: str) -> str | None:
    """A server's address, also without ``http://``; None if it is a model's name."""
    if name.startswith(("http://", "https://")):
        return name
    return f"http://{name}" if PLACE.fullmatch(name) and not Path(name).exists() else None


def _diagnose(found: Configuration, machine: int | None, device: "DeviceKind | None", *, as_json: bool) -> None:
    # In this order, and before anything else imports MLX.
    load_blas()
    import_mlx_lm()
    from jackfield.cli.diagnosis import diagnose  # noqa: PLC0415
    from jackfield.doctor.finding import failed  # noqa: PLC0415

    diagnosis = diagnose(found.settings.of_model(found.settings.model), machine, device)
    # Another machine cannot be looked at.
    findings = [] if machine or device else list(_checks(found, diagnosis.model.folder))
    if as_json:
        click.echo(_json(diagnosis.as_json(), findings))
    else:
        diagnosis.show()
        _show(findings)
    sys.exit(DOES_NOT_FIT if not diagnosis.plan.fits else FAILED if failed(findings) else 0)


def _checks(found: Configuration, folder: Path | None) -> "Iterable[Finding]":
    from jackfield.doctor.finding import careful  # noqa: PLC0415 - imports MLX, like all of these
    from jackfield.doctor.machine import machine_checks  # noqa: PLC0415
    from jackfield.doctor.model import model_checks  # noqa: PLC0415
    from jackfield.doctor.setup import setup_checks  # noqa: PLC0415
    from jackfield.hooks.discovery import discover  # noqa: PLC0415
    from jackfield.models.device import detect_device  # noqa: PLC0415

    settings = found.settings
    yield from careful("machine", lambda: machine_checks(detect_device(load_blas()), settings.cache_dir))
    yield from careful("setup", lambda: setup_checks(found, discover(settings)))
    yield from careful("model", lambda: model_checks(folder))


def _visit(url: str, model: str | None, *, real: bool, as_json: bool) -> None:
    from jackfield.doctor.finding import failed  # noqa: PLC0415 - see above
    from jackfield.doctor.server import server_checks  # noqa: PLC0415
    from jackfield.doctor.visit import Visit  # noqa: PLC0415

    visit = Visit(url, os.environ.get(KEY), model)
    check = _real_checks() if real else server_checks
    findings = []
    with Console(stderr=True).status(f"Asking {visit.url}") as status:
        for finding in check(visit, _bandwidth(visit.url)):
            findings.append(finding)
            status.update(f"{finding.check}: {finding.verdict}")
    visit.close()
    if as_json:
        click.echo(_json({"url": visit.url, "model": visit.model}, findings))
    else:
        _show(findings)
    sys.exit(FAILED if failed(findings) else 0)


def _real_checks() -> "Callable[[Visit, float | None], Iterable[Finding]]":
    # A server of the doctor's own takes part. In this order, and before anything else imports MLX.
    load_blas()
    import_mlx_lm()
    from jackfield.doctor.real import real_checks  # noqa: PLC0415

    return real_checks


def _bandwidth(url: str) -> float | None:
    """What this machine reads from memory in a second, if the server is on it."""
    if not url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
        return None
    load_blas()
    import_mlx_lm()
    import mlx.core as mx  # noqa: PLC0415

    from jackfield.doctor.machine import memory_bandwidth  # noqa: PLC0415
    from jackfield.models.device import detect_device  # noqa: PLC0415

    return memory_bandwidth(mx.float32 if detect_device(load_blas()).kind == "cpu" else mx.float16)


def _show(findings: "Iterable[Finding]") -> None:
    from jackfield.doctor.finding import table  # noqa: PLC0415 - see above

    Console(highlight=False).print(table(findings))


def _json(facts: dict[str, Any], findings: "Iterable[Finding]") -> str:
    return json.dumps({**facts, "checks": [finding.as_json() for finding in findings]}, indent=2)
