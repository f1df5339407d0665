"""The configuration that Prometheus scrapes with."""

from collections.abc import Sequence
from importlib.resources import files
from string import Template

AUTHORIZATION = """
    # A key of the scope "metrics", in a file that only Prometheus may read.
    authorization:
      credentials_file: {file}"""


def scrape_configuration(
    targets: Sequence[str], *, interval: str = "15s", scheme: str = "http", key_file: str | None = None
) -> str:
    """The text of ``prometheus.yml``.

    Args:
        targets: servers, as ``host:port``.
        interval: between two scrapes, in Prometheus' words.
        scheme: ``http`` or ``https``.
        key_file: holds the key, where the servers want one.
    """
    template = Template((files("jackfield") / "templates/monitoring/prometheus.yml.tmpl").read_text("utf-8"))
    return template.substitute(
        targets=", ".join(f'"{target}"' for target in targets),
        interval=interval,
        scheme=scheme,
        authorization=AUTHORIZATION.format(file=key_file) if key_file else "",
    )


def alert_rules() -> str:
    """The text of ``jackfield-alerts.yml``."""
    return (files("jackfield") / "templates/monitoring/jackfield-alerts.yml").read_text("utf-8")
