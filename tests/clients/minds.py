"""Models that assistants can be tried with: what they say to a prompt of the scripted server's template."""

import json
import re
from typing import Any

from jackfield.testing.server import Answer

RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def worker(*calls: tuple[str, dict[str, Any]]) -> Answer:
    """Makes these calls one after the other, and then tells what the last one gave; without tools, it names things."""

    def answer(prompt: str) -> str:
        if "<tools>" not in prompt:
            return "Looking things up"
        results = RESULT.findall(prompt)
        if len(results) < len(calls):
            return f"Step {len(results) + 1}.\n{written(*calls[len(results)])}"
        return f"Done: {results[-1].strip()}"

    return answer


def thinker(answer: Answer) -> Answer:
    """The same, after some thought."""
    return lambda prompt: f"<think>\nWhat is there to do?\n</think>\n\n{answer(prompt)}"


def written(name: str, arguments: dict[str, Any]) -> str:
    """A call as Hermes and Qwen models write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
