"""``jackfield doctor``: what fits in memory, before anything is downloaded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from jackfield import settings as configuration
from jackfield.models.device import import_mlx_lm, load_blas
from jackfield.models.sizes import parse_size

if TYPE_CHECKING:
    from jackfield.models.architecture import DeviceKind

DOES_NOT_FIT = 3
"""Exit status."""

EPILOG = """\b
Examples:
  jackfield doctor
  jackfield doctor mlx-community/Qwen2.5-Coder-32B-Instruct-4bit --memory 48GB --device metal
  jackfield doctor --preset qwen2.5-coder-32b --memory 32GB --device metal
  jackfield doctor ./model --context-length 32768 --max-batch 4 --kv-bits 8
\b
Exit status: 0 if at least one sequence fits at full context, 3 if not, 1 after an error.
\b
Keys of --json: model, origin, model_type, parameters, weights_type, model_context_length, downloaded, disk_bytes,
disk_free_bytes, device, device_kind, machine_bytes, and the plan: fits, total_bytes, weights_bytes, workspace_bytes,
kv_pool_bytes, prefix_cache_bytes, remaining_bytes, kv_bits, kv_bytes_per_token, state_bytes_per_sequence,
sequence_bytes, context_length, context_that_fits, slots, sequences_at_full_context, tokens_in_all, image_tokens,
advice.
null stands for what is not known.
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
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
def doctor(memory: str | None, device: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Say what fits in memory: weights, KV cache a token, context times slots, and what remains.

    MODEL is starter, a folder, a .gguf file or a Hugging Face name; nothing is downloaded but its config.json. Settings
    from the environment and from a file count as they do for serve.
    """
    settings = configuration.read(flags, config).settings
    # Memory modules have powers of two: what is sold as 48GB is 48GiB.
    machine = parse_size(memory, binary=True) if memory else None
    # In this order, and before anything else imports MLX.
    load_blas()
    import_mlx_lm()
    from jackfield.cli.diagnosis import diagnose  # noqa: PLC0415

    diagnosis = diagnose(settings, machine, cast("DeviceKind | None", device))
    if as_json:
        click.echo(diagnosis.as_json())
    else:
        diagnosis.show()
    sys.exit(0 if diagnosis.plan.fits else DOES_NOT_FIT)
