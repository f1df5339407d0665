"""Fill in the middle: how each family of models is shown what stands before and after a gap.

The formats are those of the models' authors; llama.cpp's server (``format_prompt_infill``) says what goes into them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import ceil

from jackfield.models.tokenizer import Tokenizer

REPOSITORY = "myproject"
FILE = "filename"
"""Nobody says what the project and the file are called; llama.cpp calls them so."""

STEPS = 16
"""A prefix that is too long is cut in so many steps of the context, so that the next letter does not move the cut, and
what stands after it is found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Format:
    """A family's tokens, by their names, and the order in which they come."""

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool = False
    file: str | None = None
    """Stands before a file's name, if the tokenizer has it."""
    repository: str | None = None
    """Stands before the repository's name, which comes first and only with a token of its own."""
    names_gap: bool = True
    """Whether a name also goes before the text that has the gap."""
    heading: str = "# {name}\n"
    """What stands before a file's text when there is no token for that; the files then begin the prefix, as text."""
    ends: tuple[str, ...] = ()
    """Tokens that end the middle, if the tokenizer has them; so do all those above."""

    @property
    def required(self) -> tuple[str, ...]:
        """The tokens without which there is no filling in."""
        return tuple(filter(None, (self.prefix, self.suffix, self.middle)))

    @property
    def controls(self) -> tuple[str, ...]:
        """All its tokens; none of them is ever part of a middle."""
        return (*self.required, *filter(None, (self.file, self.repository)), *self.ends)


FORMATS = (
    # Qwen2.5-Coder (arXiv:2409.12186) and Qwen3-Coder: github.com/QwenLM/Qwen3-Coder, examples/Qwen2.5-Coder.md, which
    # also has these ends as its eos_token_ids. CodeGemma has the first three, and a separator of files:
    # ai.google.dev/gemma/docs/codegemma/prompt-structure.
    Format(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        file="<|file_sep|>",
        repository="<|repo_name|>",
        ends=("<|fim_pad|>", "<|file_separator|>", "<|endoftext|>", "<|im_end|>"),
    ),
    # StarCoder (arXiv:2305.06161), StarCoder2 (arXiv:2402.19173, section 5.1: names may be missing, and that of the
    # gap's file comes after the prefix token), and others that took over their tokens.
    Format(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        file="<file_sep>",
        names_gap=False,
        ends=("<fim_pad>", "<repo_name>", "<reponame>", "<filename>", "<|endoftext|>"),
    ),
    # SantaCoder: huggingface.co/bigcode/santacoder.
    Format("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),
    # DeepSeek-Coder, with its way to write several files: github.com/deepseek-ai/DeepSeek-Coder, README.md.
    Format(
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>", heading="#{name}\n"
    ),
    # Codestral: github.com/mistralai/mistral-common, encode_fim of tokens/tokenizers/instruct.py; several files as in
    # Continue's template for it (core/autocomplete/templating/AutocompleteTemplate.ts).
    Format("[PREFIX]", "[SUFFIX]", None, suffix_first=True, heading="+++++ {name}\n", ends=("[MIDDLE]",)),
    # Code Llama: github.com/meta-llama/codellama, infilling_prompt_tokens of llama/generation.py.
    Format("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ends=("\u2581<EOT>",)),
    # Seed-Coder (arXiv:2506.03524).
    Format("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),
)


@dataclass(frozen=True, slots=True)
class File:
    """A file to know of, or a piece of one."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap in a text, and what is around it."""

    prefix: str
    suffix: str
    line: str = ""
    """The beginning of the line that has the gap, after the prefix."""
    files: Sequence[File] = ()


class FillInTheMiddle:
    """Makes prompts in which a model fills in the middle.

    Args:
        tokenizer: the model's.
        form: the format of a family whose required tokens it has.
    """

    def __init__(self, tokenizer: Tokenizer, form: Format) -> None:
        self._form = form
        self._tokens = {name: token for name in form.controls if (token := tokenizer.token(name)) is not None}
        self._encode = tokenizer.literal(form.controls)
        self._opening = tokenizer.encode("")
        # Editors send the same files at every keystroke.
        self._block = lru_cache(256)(self._new_block)
        self._frame = self._new_frame()
        self.ends = frozenset(self._tokens.values())
        """The tokens that end a middle, besides the model's own."""

    def prompt(self, prefix: str | Sequence[int], suffix: str) -> list[int]:
        """Token ids that ask for what stands between ``prefix`` and ``suffix``."""
        before = self._encode(prefix) if isinstance(prefix, str) else prefix
        return [*self._opening, *self._around(before, self._encode(suffix, inside=True))]

    def fitting(self, gap: Gap, room: int) -> tuple[list[int], bool]:
        """Token ids, at most ``room``, that ask to fill ``gap``; and whether something had to be left out for that.

        Files go first, those that come first before the others; then the beginning of the prefix and the end of the
        suffix, which keeps a quarter, as with llama.cpp.
        """
        before, after = self._before(gap), self._encode(gap.suffix, inside=True)
        room = max(0, room - len(self._opening) - len(self._form.required))
        prefix, suffix = _window(before, after, room)
        blocks = [self._block(file) for file in gap.files]
        kept = _last_that_fit(blocks, room - len(prefix) - len(suffix) - sum(map(len, self._frame)))
        whole = (len(prefix), len(suffix), len(kept)) == (len(before), len(after), len(blocks))
        return self._joined(kept, prefix, suffix), not whole

    def _before(self, gap: Gap) -> list[int]:
        """Tokens before the gap; those of its own line do not change those of the lines above."""
        above = self._encode(gap.prefix, inside=bool(gap.files) and self._separator is None)
        return above + (self._encode(gap.line, inside=True) if gap.line else [])

    def _joined(self, files: Sequence[Sequence[int]], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        start, end = self._frame
        context = [*start, *chain.from_iterable(files), *end] if files else []
        if self._separator is None:
            return [*self._opening, *self._around([*context, *prefix], suffix)]
        return [*self._opening, *context, *self._around(prefix, suffix)]

    def _around(self, prefix: Sequence[int], suffix: Sequence[int]) -> Iterator[int]:
        form = self._form
        parts = [(form.prefix, prefix), (form.suffix, suffix)]
        for name, tokens in reversed(parts) if form.suffix_first else parts:
            yield self._tokens[name]
            yield from tokens
        if form.middle:
            yield self._tokens[form.middle]

    @property
    def _separator(self) -> int | None:
        return self._tokens.get(self._form.file or "")

    def _new_block(self, file: File) -> tuple[int, ...]:
        """A file's tokens, with its name and a line break at its end."""
        text = file.text if file.text.endswith("\n") else f"{file.text}\n"
        blank = "\n" if self._separator is None else ""
        return *self._heading(file.name), *self._encode(text + blank, inside=True)

    def _heading(self, name: str) -> list[int]:
        if self._separator is None:
            return self._encode(self._form.heading.format(name=name), inside=True)
        return [self._separator, *self._encode(f"{name}\n", inside=True)]

    def _new_frame(self) -> tuple[list[int], list[int]]:
        """What stands before the first file, and before the text with the gap."""
        repository = self._tokens.get(self._form.repository or "")
        start = [] if repository is None else [repository, *self._encode(f"{REPOSITORY}\n", inside=True)]
        if self._separator is None or self._form.names_gap:
            return start, self._heading(FILE)
        return start, [self._separator]


def fill_in_the_middle(tokenizer: Tokenizer) -> FillInTheMiddle | None:
    """How a model with this tokenizer fills in the middle; None when it has no tokens for that."""
    known = (form for form in FORMATS if all(tokenizer.token(name) is not None for name in form.required))
    form = next(known, None)
    return FillInTheMiddle(tokenizer, form) if form else None


def _window(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int]]:
    """What of both fits, around the gap."""
    suffix = suffix[: max(room // 4, room - len(prefix))]
    step = max(1, room // STEPS)
    steps = max(0, ceil((len(prefix) + len(suffix) - room) / step))
    return prefix[steps * step :], suffix


def _last_that_fit(blocks: Sequence[tuple[int, ...]], room: int) -> list[tuple[int, ...]]:
    """As many blocks as fit, the last ones before the others, in their order."""
    kept = []
    for block in reversed(blocks):
        if len(block) <= room:
            room -= len(block)
            kept.append(block)
    return kept[::-1]
