"""docs/clients.md says of each client whether it is tried, and in which version."""

import json
import re
import tomllib
from pathlib import Path

import guide
import pytest
import yaml

HERE = Path(__file__).parent
TEXT = guide.PAGE.read_text("utf-8")
TABLE = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| (.+?) \|", TEXT, re.MULTILINE)
TRIED = {title: version.removeprefix("tried, ") for title, _, version in TABLE if version != "not tried"}
PACKAGES = {
    "OpenAI SDK for Python": "openai",
    "OpenAI SDK for Node": "openai",
    "LangChain": "langchain-openai",
    "LiteLLM": "litellm",
    "Pydantic AI": "pydantic-ai-slim[openai]",
    "OpenAI Agents SDK": "openai-agents",
    "AI SDK": "ai",
    "AI SDK, OpenAI provider": "@ai-sdk/openai",
    "AI SDK, Anthropic provider": "@ai-sdk/anthropic",
    "llm": "llm",
    "Claude Code": "@anthropic-ai/claude-code",
    "Codex CLI": "@openai/codex",
    "Continue": "@continuedev/cli",
    "pi": "@mariozechner/pi-coding-agent",
    "opencode": "opencode-ai",
    "Anthropic SDK for Python": "anthropic",
}


def pinned() -> dict[str, set[str]]:
    """The versions that the project asks for, by package."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text("utf-8"))
    lines = [*project["project"]["optional-dependencies"]["test"], *(HERE / "requirements.txt").read_text().split()]
    asked = [re.split("==|>=", line.partition(",")[0], maxsplit=1) for line in lines]
    asked += json.loads((HERE / "package.json").read_text())["dependencies"].items()
    return {name: {one[1] for one in asked if one[0] == name and len(one) == 2} for name in PACKAGES.values()}


def test_every_section_is_in_the_table() -> None:
    assert [title for title, _, _ in TABLE] == re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [link for _, link, _ in TABLE] == [
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title, _, _ in TABLE
    ]


@pytest.mark.parametrize("title", TRIED)
def test_what_is_tried_is_tried_in_that_version(title: str) -> None:
    tests = "".join(file.read_text() for file in HERE.glob("test_*.py") if file.name != "test_guide.py")
    assert f'"{title}"' in tests
    version = TRIED[title].split()[-1]
    assert any(f"{one}.".startswith(f"{version}.") for one in pinned()[PACKAGES[title]])


def test_what_is_not_tried_says_so() -> None:
    untold = re.findall(r"^## (.+)\n\n(?!\*Not tried\.\*)", TEXT, re.MULTILINE)
    assert untold == list(TRIED)


def test_settings_are_well_formed() -> None:
    blocks = [block for title, _, _ in TABLE for block in guide.section(title)]
    read = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    settings = [read[block.language](block.text) for block in blocks if block.language in read]
    assert len(settings) > 3
    assert all(settings)


def test_everything_names_the_server_of_the_page() -> None:
    for url in re.findall(r"http://127\.0\.0\.1[\w:/.]*", TEXT):
        assert url.startswith(guide.URL)
