"""The tokenizer of a model: text to token ids and back, and its chat template."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from jackfield.errors import InvalidRequestError, ModelLoadError, TemplateLimitError
from jackfield.models.conversation import Message, cut, marked, prepared
from jackfield.models.encoding import encoding
from jackfield.models.folder import read_json
from jackfield.models.literal import LiteralEncoder
from jackfield.models.template_process import TemplateExhaustedError, TemplateProcess, TemplateRefusedError
from jackfield.text.reasoning import ThinkingTags

GENEROUS = 16
"""Characters of a token, more than those of any language's texts have on average."""


TEMPLATE_SECONDS = 10.0
"""No conversation takes a template longer: thousands of messages take a second."""


TEMPLATE_LENGTH = 1_000_000
"""Characters. The longest templates have some ten thousand."""


class Tokenizer:
    """A Hugging Face tokenizer from a model folder; its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        try:
            # Without a word about it, transformers asks on the terminal whether to run code from the folder.
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._backend = self._tokenizer.backend_tokenizer
            # Where files are missing, transformers makes one with no more than the special tokens.
            if not self._backend.encode("a", add_special_tokens=False).ids:
                raise ValueError("it has no words")
        except Exception as error:
            raise _explained(folder, error) from error
        self.end_token: int | None = self._tokenizer.eos_token_id
        """The tokenizer's own; models may name others too."""
        self.end_tokens = _end_tokens(folder, self._tokenizer.eos_token_id)
        own = inspect.signature(type(self._tokenizer).apply_chat_template).parameters
        self._reserved = frozenset(own) - {"kwargs"} | {"messages"}
        self._process = TemplateProcess()
        self._check_templates(folder)

    def _check_templates(self, folder: Path) -> None:
        try:
            longest = max(len(self._template_for([])), len(self._template_for([{}])))
        except ValueError as error:
            raise ModelLoadError(
                f"The chat template in {folder} cannot be told: {error}",
                suggestions=("Compare chat_template in tokenizer_config.json with the original's.",),
            ) from error
        if longest > TEMPLATE_LENGTH:
            raise ModelLoadError(
                f"The chat template in {folder} has {longest} characters, more than the {TEMPLATE_LENGTH} it may have.",
                suggestions=("Look at it: templates of models have some thousands.",),
            )

    @property
    def template(self) -> str:
        """The chat template, or nothing."""
        return self._template_for([])

    def _template_for(self, tools: Sequence[dict[str, Any]]) -> str:
        """Some models have one of their own for conversations with tools."""
        if not self._tokenizer.chat_template:
            return ""
        return str(self._tokenizer.get_chat_template(None, list(tools) or None))

    @cached_property
    def source(self) -> str:
        """The tokenizer as the contents of a ``tokenizer.json``."""
        return str(self._backend.to_str())

    def encode(self, text: str, *, special: bool = True, parse: bool = True, limit: int | None = None) -> list[int]:
        """Token ids.

        ``special`` adds what the model expects around a text, such as a begin-of-sequence token. Without ``parse``,
        special tokens that are written in the text are text like any other. Of a text of more than twice ``limit``
        tokens, perhaps only the first ones are found, more than twice as many as that: nobody reads megabytes to
        refuse them.

        Raises:
            InvalidRequestError: the tokenizer gives up on the text.
        """
        backend = self._backend if parse else self._literal
        length = len(text) if limit is None else GENEROUS * limit
        while True:
            tokens = list(encoding(backend, text[:length], special=special).ids)
            if length >= len(text) or len(tokens) > 2 * (limit or 0):
                return tokens
            length *= 4

    @cached_property
    def _literal(self) -> Any:
        # One of its own: this is a setting of the whole tokenizer.
        backend = Backend.from_str(self.source)
        backend.encode_special_tokens = True
        return backend

    def written(self, tokens: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it, which is not always its text."""
        return [self._backend.id_to_token(token) or "" for token in tokens]

    def settings(self) -> dict[str, str | None]:
        """The tokenizer's class, its chat template and the tokens that have a role, by their names in transformers."""
        tokenizer = self._tokenizer
        roles = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {**roles, "tokenizer_class": type(tokenizer).__name__, "chat_template": self.template or None}

    @cached_property
    def closes_texts(self) -> bool:
        """Whether `encode` puts a special token behind a text."""
        return self.encode("a")[-1] != self.encode("a", special=False)[-1]

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of ``tokens``, with or without special tokens."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=not special))

    def token(self, text: str) -> int | None:
        """The id of the token written as ``text``, of whatever kind."""
        token: int | None = self._backend.token_to_id(text)
        return token

    def special_token(self, text: str) -> int | None:
        """The id of a special token written as ``text``; such tokens leave no trace in decoded text."""
        token: int | None = self._backend.token_to_id(text)
        added = self._backend.get_added_tokens_decoder()
        return token if token is not None and token in added and added[token].special else None

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """As they are written: tokens that leave no trace in decoded text."""
        return tuple(added.content for added in self._backend.get_added_tokens_decoder().values() if added.special)

    def added_token(self, text: str) -> int | None:
        """The id of a token that was added to the vocabulary as ``text``, special or not."""
        return self._added.get(text)

    @cached_property
    def _added(self) -> dict[str, int]:
        return {added.content: token for token, added in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def thinking(self) -> ThinkingTags | None:
        """What the model's thoughts stand between, if it is made for thinking."""
        tags = ThinkingTags()
        known = all(tag in self.template or tag in self._added for tag in (tags.opening, tags.closing))
        return tags if known else None

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; perhaps only a part of a character."""
        if token in self._special:
            return self._special[token].encode()
        return self._bytes.decode_bytes([token])

    @cached_property
    def _special(self) -> dict[int, str]:
        return {token: added.content for token, added in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def _bytes(self) -> LLTokenizer:
        return LLTokenizer(self.source)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any],
        *,
        begins_answer: bool = True,
        continues: bool = False,
    ) -> str:
        """The prompt that the model's chat template makes of a conversation.

        It ends where an answer begins, unless ``begins_answer`` is false, or inside the last message, if it
        ``continues`` that.

        Raises:
            InvalidRequestError: the model has no template, or it refuses this conversation.
        """
        if not self.template:
            raise InvalidRequestError(
                "This model has no chat template, so it cannot hold a conversation.",
                param="messages",
                suggestions=("Use /v1/completions.", "Serve an instruction-tuned model."),
            )
        if taken := sorted(self._reserved & options.keys()):
            # Among them a template of the client's own, which could keep the server busy for ever.
            raise InvalidRequestError(
                f"chat_template_kwargs.{taken[0]} is not a variable of the model's template.",
                param=f"chat_template_kwargs.{taken[0]}",
                code="invalid_value",
                suggestions=("Leave it out: only variables for the template may be set.",),
            )
        try:
            chat = marked(prepared(messages)) if continues else prepared(messages)
            variables = {
                **self._tokenizer.special_tokens_map,
                **options,
                "messages": chat,
                "tools": list(tools) or None,
                "documents": None,
                "add_generation_prompt": begins_answer,
            }
            prompt = self._process.render(self._template_for(tools), variables, TEMPLATE_SECONDS)
            return cut(prompt, chat) if continues else prompt
        except TemplateExhaustedError as error:
            raise TemplateLimitError(TEMPLATE_SECONDS) from error
        except (TemplateRefusedError, ValueError) as error:
            raise InvalidRequestError(
                f"The model's chat template refuses this conversation: {error}",
                param="messages",
                suggestions=("Check the order of roles.", "Check chat_template_kwargs."),
            ) from error

    def decoder(self, visible: frozenset[int] = frozenset(), *, inside: bool = False) -> "TextDecoder":
        """A decoder for one answer, which leaves out special tokens but for those that are to be ``visible``.

        One for an answer ``inside`` a text keeps a space that it begins with.
        """
        before = self.encode("\n", special=False) if inside else ()
        return TextDecoder(self._backend, {token: self._special[token] for token in visible}, before)

    def literal(self, controls: Collection[str]) -> LiteralEncoder:
        """An encoder that takes nothing for a special token, and none of ``controls`` either."""
        return LiteralEncoder(self._backend, controls)


class TextDecoder:
    """Turns the tokens of one answer into text as they come; a character is given once all of its bytes are there.

    Args:
        backend: the tokenizer.
        visible: special tokens that have a text here.
        before: tokens that stand before the answer.
    """

    def __init__(self, backend: Any, visible: Mapping[int, str], before: Sequence[int] = ()) -> None:
        self._backend = backend
        self._visible = visible
        self._begin(before)

    def _begin(self, before: Sequence[int] = ()) -> None:
        self._stream = DecodeStream(list(before), skip_special_tokens=True)
        self._tokens = list(before)
        self._length = len(self._backend.decode(self._tokens, skip_special_tokens=True))

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        if token in self._visible:
            before = self.flush()
            self._begin()
            return before + self._visible[token]
        self._tokens.append(token)
        text = self._stream.step(self._backend, token) or ""
        self._length += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        return str(self._backend.decode(self._tokens, skip_special_tokens=True))[self._length :]


def _explained(folder: Path, error: Exception) -> ModelLoadError:
    """What transformers could not do with the folder, in words for the user."""
    if "trust_remote_code" in str(error):
        return ModelLoadError(
            f"The tokenizer in {folder} comes with code of its own, which is not run here.",
            suggestions=("Take a model whose tokenizer transformers has.",),
        )
    return ModelLoadError(
        f"The tokenizer in {folder} cannot be loaded: {error}",
        suggestions=("Check that tokenizer.json and tokenizer_config.json are there and whole.",),
    )


def _end_tokens(folder: Path, own: int | None) -> frozenset[int]:
    """All tokens that end an answer: models name them in up to three places."""
    named = [_named_end_tokens(folder / name) for name in ("config.json", "generation_config.json")]
    return frozenset().union([] if own is None else [own], *named)


def _named_end_tokens(file: Path) -> list[int]:
    named = read_json(file).get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(one, int) for one in ids):
        raise ModelLoadError(
            f"{file} names no tokens as eos_token_id: {named!r}.",
            suggestions=("Let it be a token's number, or a list of such.",),
        )
    return ids
