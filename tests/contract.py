"""What ``openapi.yaml`` promises, for tests of any kind."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

DOCUMENT = Path(__file__).parent.parent / "openapi.yaml"
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@cache
def document() -> dict[str, Any]:
    """The whole document; treat it as read-only."""
    loaded: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
    return loaded


def declared_routes() -> set[tuple[str, str]]:
    """Every (METHOD, path), parameters written as ``{model}``, without Starlette's converters."""
    return {
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
        if method in METHODS
    }


@cache
def validator(name: str) -> Draft202012Validator:
    """A validator for one of the document's schemas."""
    return Draft202012Validator(_inlined({"$ref": f"#/components/schemas/{name}"}))


def _inlined(schema: Any) -> Any:
    """Without references, which make validation ten times slower; no schema here refers to itself."""
    if isinstance(schema, dict):
        return {key: _inlined(value) for key, value in resolve(schema).items()}
    return [_inlined(item) for item in schema] if isinstance(schema, list) else schema


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references inside the document; what stands beside a reference only describes it."""
    while "$ref" in schema:
        here: Any = document()
        for part in schema["$ref"].removeprefix("#/").split("/"):
            here = here[part]
        schema = here
    return schema
