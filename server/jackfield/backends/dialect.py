"""What vLLM and llama.cpp call what Jackfield calls otherwise.

Both take no notice of fields that they do not know, so that a request would be answered without what it asks for.
"""

from collections.abc import Callable, Mapping

from jackfield.errors import UnsupportedError
from jackfield.protocol.base import JsonObject
from jackfield.settings.upstreams import Dialect

Said = tuple[str, JsonObject]
"""A path of a server's API, and the request to it."""

INFILL, TOKENIZE = "/infill", "/tokenize"
_ANSWERS = ("/chat/completions", "/completions", INFILL)
_SUFFIX_LACKS = ("logprobs", "echo", "best_of")
"""What ``/infill`` cannot say of a request with a suffix."""


def said(dialect: Dialect, path: str, document: JsonObject) -> Said:
    """A request in the words of who is asked.

    Args:
        dialect: theirs.
        path: where Jackfield has it, below the base URL or beside it.
        document: the request in Jackfield's words.

    Raises:
        UnsupportedError: there are no words for a part of it.
    """
    return _DIALECTS[dialect](path, document)


def _vllm(path: str, document: JsonObject) -> Said:
    if path == TOKENIZE:
        return path, _vllm_text(document)
    if path not in _ANSWERS:
        return path, document
    # Its grammars are of another kind than llguidance's.
    _refuse(document, "vLLM", "grammar")
    if regex := document.get("regex"):
        return path, _without(document, "regex") | {"structured_outputs": {"regex": regex}}
    return path, document


def _vllm_text(document: JsonObject) -> JsonObject:
    _refuse(document, "vLLM", "with_pieces")
    if document.get("parse_special") is False:
        raise _unsupported("vLLM", "parse_special")
    names = {"content": "prompt", "add_special": "add_special_tokens"}
    told = {names.get(name, name): value for name, value in document.items() if name != "parse_special"}
    # llama.cpp's word for a text brings llama.cpp's default.
    return {"add_special_tokens": False} | told if "content" in document else told


def _llama_cpp(path: str, document: JsonObject) -> Said:
    if path == TOKENIZE:
        return path, _llama_cpp_text(document)
    if path not in _ANSWERS:
        return path, document
    _refuse(document, "llama.cpp", "regex", "grammar")
    told = _one_tool(_renamed(document, {"repetition_penalty": "repeat_penalty"}))
    return (INFILL, _as_gap(told)) if told.get("suffix") else (path, told)


def _one_tool(document: JsonObject) -> JsonObject:
    """A tool that must be called as the only one that there is: llama.cpp takes no notice of its name."""
    choice = document.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return document
    tools = [tool for tool in document["tools"] if tool["function"]["name"] == choice["function"]["name"]]
    return document | {"tools": tools, "tool_choice": "required"}


def _llama_cpp_text(document: JsonObject) -> JsonObject:
    _refuse(document, "llama.cpp", "messages", "return_token_strs")
    told = _renamed(document, {"prompt": "content", "add_special_tokens": "add_special"})
    # vLLM's word for a text brings vLLM's default.
    return {"add_special": True} | told if "prompt" in document else told


def _as_gap(document: JsonObject) -> JsonObject:
    """A completion before a suffix, which llama.cpp would leave out of account."""
    _refuse(document, "llama.cpp", *_SUFFIX_LACKS)
    prompt = document["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        [prompt] = prompt
    if not isinstance(prompt, str):
        raise _unsupported("llama.cpp", "prompt", "several prompts or tokens before a 'suffix'")
    told = _renamed(document, {"suffix": "input_suffix", "max_tokens": "n_predict", "n": "n_cmpl"})
    return _without(told, "prompt") | {"input_prefix": prompt}


def _renamed(document: JsonObject, names: Mapping[str, str]) -> JsonObject:
    return {names.get(name, name): value for name, value in document.items()}


def _without(document: JsonObject, left_out: str) -> JsonObject:
    return {name: value for name, value in document.items() if name != left_out}


def _refuse(document: JsonObject, server: str, *names: str) -> None:
    for name in names:
        if document.get(name):
            raise _unsupported(server, name)


def _unsupported(server: str, param: str, what: str | None = None) -> UnsupportedError:
    return UnsupportedError(
        f"{server}, which serves this model, has no way to say {what or repr(param)}.",
        param=param,
        suggestions=("Leave it out.", "Ask for it from a model whose server can do it, see GET /v1/models."),
    )


_DIALECTS: Mapping[Dialect, Callable[[str, JsonObject], Said]] = {
    "openai": lambda path, document: (path, document),
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
}
