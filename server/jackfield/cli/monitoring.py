"""``jackfield monitoring``: files for Prometheus and Grafana."""

import json
from pathlib import Path

import click

from jackfield import settings as configuration
from jackfield.errors import ConfigurationError
from jackfield.monitoring.dashboard import dashboard
from jackfield.monitoring.scrape import alert_rules, scrape_configuration

EXAMPLES = """\b
Examples:
  jackfield monitoring export monitoring/
  jackfield monitoring export monitoring/ --target mac.local:8080 --target gpu.local:8080
  jackfield monitoring export monitoring/ --key-file /etc/prometheus/jackfield.key
"""


@click.group(epilog=EXAMPLES)
def monitoring() -> None:
    """Watch the server with Prometheus and Grafana."""


@monitoring.command(epilog=EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--target", "targets", multiple=True, metavar="HOST:PORT", help="A server; may be repeated.")
@click.option("--interval", default="15s", show_default=True, help="Between two scrapes.")
@click.option("--scheme", type=click.Choice(["http", "https"]), default="http", show_default=True)
@click.option("--key-file", help="A file with a key of the scope metrics, where the servers want one.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option("--json", "as_json", is_flag=True, help="List what was written for programs.")
def export(
    folder: Path,
    *,
    targets: tuple[str, ...],
    interval: str,
    scheme: str,
    key_file: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write prometheus.yml, jackfield-alerts.yml and jackfield-dashboard.json into FOLDER.

    The server is the one that the settings describe, unless --target names others.
    """
    settings = configuration.read({}).settings
    servers = targets or (f"{settings.host}:{settings.port}",)
    texts = {
        "prometheus.yml": scrape_configuration(servers, interval=interval, scheme=scheme, key_file=key_file),
        "jackfield-alerts.yml": alert_rules(),
        "jackfield-dashboard.json": dashboard(),
    }
    files = {folder / name: text for name, text in texts.items()}
    if there := [str(file) for file in files if file.exists() and not force]:
        raise ConfigurationError(
            f"{', '.join(there)} would be written over.", suggestions=("Name another folder, or use --force.",)
        )
    _write(folder, files)
    if as_json:
        click.echo(json.dumps({"files": [str(file) for file in files]}, indent=2))
        return
    for file in files:
        click.echo(f"Written: {file}")
    click.echo(f"Start Prometheus with them:  prometheus --config.file={folder / 'prometheus.yml'}")
    click.echo("Grafana: Dashboards, New, Import, and the JSON file.")


def _write(folder: Path, files: dict[Path, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}.", suggestions=("Name a folder that you may write to.",)
        ) from error
