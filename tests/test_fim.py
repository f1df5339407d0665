"""Prompts that ask for a middle: each family's tokens in its order, and nothing of the user's text among them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from jackfield.engine.request import FinishEvent, TokenEvent
from jackfield.models.fim import FORMATS, File, FillInTheMiddle, Format, Gap, fill_in_the_middle
from jackfield.models.tokenizer import Tokenizer
from scripted_engine import staged

FILES = (File("a.py", "one"), File("b.py", "two\n"))
LETTERS = "abcdefghijklmnopqrstuvwxyzPREFIX[]+#. \n"

Make = Callable[..., Tokenizer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tokenizer with a token for each letter, and these added ones."""

    def make(*added: str, special: bool = False, begin: str | None = None, spaced: bool = False) -> Tokenizer:
        names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS.replace(" ", "\u2581")]
        vocabulary = {name: token for token, name in enumerate(names)}
        backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        spaces = normalizers.Replace(" ", "\u2581")
        backend.normalizer = normalizers.Sequence([*([normalizers.Prepend("\u2581")] if spaced else []), spaces])
        strip = [decoders.Strip(" ", 1, 0)] if spaced else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        backend.add_tokens([AddedToken(name, special=special, normalized=False) for name in added])
        if begin:
            backend.add_special_tokens([AddedToken(begin, special=True, normalized=False)])
            token = backend.token_to_id(begin)
            backend.post_processor = processors.TemplateProcessing(
                single=[begin, "$A"], pair=[begin, "$A", begin, "$B:1"], special_tokens=[(begin, token)]
            )
        backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return Tokenizer(tmp_path)

    return make


def fim_of(tokenizer: Tokenizer) -> FillInTheMiddle:
    fim = fill_in_the_middle(tokenizer)
    assert fim is not None
    return fim


def text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The tokens as the vocabulary writes them, but with spaces."""
    return "".join(piece if len(piece) > 1 else piece.replace("\u2581", " ") for piece in tokenizer.written(tokens))


# --- Families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "one_file", "several"),
    [
        (
            ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
            "<|fim_prefix|>x y<|fim_suffix|>z<|fim_middle|>",
            "<|repo_name|>myproject\n<|file_sep|>a.py\none\n<|file_sep|>b.py\ntwo\n<|file_sep|>filename\n"
            "<|fim_prefix|>x y<|fim_suffix|>z<|fim_middle|>",
        ),
        (
            ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"],
            "<|fim_prefix|>x y<|fim_suffix|>z<|fim_middle|>",
            "<|fim_prefix|># a.py\none\n\n# b.py\ntwo\n\n# filename\nx y<|fim_suffix|>z<|fim_middle|>",
        ),
        (
            ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"],
            "<fim_prefix>x y<fim_suffix>z<fim_middle>",
            "<file_sep>a.py\none\n<file_sep>b.py\ntwo\n<file_sep><fim_prefix>x y<fim_suffix>z<fim_middle>",
        ),
        (
            ["<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"],
            "<fim-prefix>x y<fim-suffix>z<fim-middle>",
            "<fim-prefix># a.py\none\n\n# b.py\ntwo\n\n# filename\nx y<fim-suffix>z<fim-middle>",
        ),
        (
            ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"],
            "<\uff5cfim\u2581begin\uff5c>x y<\uff5cfim\u2581hole\uff5c>z<\uff5cfim\u2581end\uff5c>",
            "<\uff5cfim\u2581begin\uff5c>#a.py\none\n\n#b.py\ntwo\n\n#filename\nx y"
            "<\uff5cfim\u2581hole\uff5c>z<\uff5cfim\u2581end\uff5c>",
        ),
        (
            ["[PREFIX]", "[MIDDLE]", "[SUFFIX]"],
            "[SUFFIX]z[PREFIX]x y",
            "[SUFFIX]z[PREFIX]+++++ a.py\none\n\n+++++ b.py\ntwo\n\n+++++ filename\nx y",
        ),
        (
            ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"],
            "\u2581<PRE>x y\u2581<SUF>z\u2581<MID>",
            "\u2581<PRE># a.py\none\n\n# b.py\ntwo\n\n# filename\nx y\u2581<SUF>z\u2581<MID>",
        ),
        (
            ["<[fim-prefix]>", "<[fim-middle]>", "<[fim-suffix]>"],
            "<[fim-suffix]>z<[fim-prefix]>x y<[fim-middle]>",
            "<[fim-suffix]>z<[fim-prefix]># a.py\none\n\n# b.py\ntwo\n\n# filename\nx y<[fim-middle]>",
        ),
    ],
    ids=["Qwen", "CodeGemma", "StarCoder2", "SantaCoder", "DeepSeek", "Codestral", "Code Llama", "Seed-Coder"],
)
@pytest.mark.parametrize("special", [True, False])
def test_each_family_has_its_own_order(
    make: Make, added: list[str], one_file: str, several: str, special: bool
) -> None:
    tokenizer = make(*added, special=special)
    fim = fim_of(tokenizer)
    assert text(tokenizer, fim.prompt("x y", "z")) == one_file
    assert text(tokenizer, fim.fitting(Gap("x y", "z"), 1000)[0]) == one_file
    assert text(tokenizer, fim.fitting(Gap("x", "z", " y", FILES), 1000)[0]) == several
    assert fim.ends == {tokenizer.token(name) for name in added}


def test_qwens_ends_are_those_of_its_own_example(make: Make) -> None:
    tokenizer = make(*FORMATS[0].controls)
    names = ("prefix", "suffix", "middle", "pad")
    expected = {*(f"<|fim_{name}|>" for name in names), "<|repo_name|>", "<|file_sep|>", "<|endoftext|>", "<|im_end|>"}
    assert set(tokenizer.written(sorted(fim_of(tokenizer).ends))) == expected | {"<|file_separator|>"}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.prefix)
def test_without_one_of_its_tokens_there_is_no_filling_in(make: Make, form: Format) -> None:
    for missing in form.required:
        assert fill_in_the_middle(make(*set(form.controls) - {missing})) is None


def test_the_starter_cannot_fill_in(starter: Path) -> None:
    assert fill_in_the_middle(Tokenizer(starter)) is None


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
def test_what_looks_like_a_special_token_in_code_is_text(make: Make, special: bool) -> None:
    tokenizer = make(*FORMATS[0].controls, special=special, begin="<s>")
    code = "".join(FORMATS[0].controls) + "<s>"
    prompt = fim_of(tokenizer).fitting(Gap(code, code, code, (File(code, code),)), 5000)[0]
    controls = [token for token in prompt if token in fim_of(tokenizer).ends]
    assert Counter(tokenizer.written(controls)) == {
        "<|fim_prefix|>": 1,
        "<|fim_suffix|>": 1,
        "<|fim_middle|>": 1,
        "<|repo_name|>": 1,
        "<|file_sep|>": 2,
    }
    assert prompt.count(tokenizer.token("<s>")) == 1
    assert tokenizer.decode(prompt, special=True).count(code) == 5


def test_other_texts_are_encoded_as_ever(make: Make) -> None:
    tokenizer = make(*FORMATS[0].controls)
    encode = tokenizer.literal(FORMATS[0].controls)
    assert encode("def f") == tokenizer.encode("def f")
    assert tokenizer.encode("<|fim_pad|>") == [tokenizer.token("<|fim_pad|>")]
    assert tokenizer.decode(encode("<|fim_pad|>")) == "<|fim_pad|>"
    assert len(encode("<|fim_pad|>")) == len("<|fim_pad|>")


def test_what_the_model_expects_around_a_text_comes_first(make: Make) -> None:
    tokenizer = make("[PREFIX]", "[SUFFIX]", begin="<s>")
    assert text(tokenizer, fim_of(tokenizer).prompt("x", "z")) == "<s>[SUFFIX]z[PREFIX]x"


def test_a_prefix_of_token_ids_stays_as_it_is(make: Make) -> None:
    tokenizer = make(*FORMATS[0].controls)
    fim = fim_of(tokenizer)
    before = [*tokenizer.encode("x"), 5, 6]
    assert fim.prompt(before, "z") == [
        tokenizer.token("<|fim_prefix|>"),
        *before,
        tokenizer.token("<|fim_suffix|>"),
        *tokenizer.encode("z"),
        tokenizer.token("<|fim_middle|>"),
    ]


def test_sentencepiece_puts_its_space_before_a_whole_text_only(make: Make) -> None:
    """As Mistral's and Llama's own code has it: a space before the prefix, and none inside the text."""
    tokenizer = make("[PREFIX]", "[SUFFIX]", spaced=True)
    fim = fim_of(tokenizer)
    assert text(tokenizer, fim.prompt("x", "z")) == "[SUFFIX]z[PREFIX] x"
    assert text(tokenizer, fim.fitting(Gap("x\n", "z", "y"), 100)[0]) == "[SUFFIX]z[PREFIX] x\ny"
    told = text(tokenizer, fim.fitting(Gap("x", "z", "", FILES[:1]), 100)[0])
    assert told == "[SUFFIX]z[PREFIX]+++++ a.py\none\n\n+++++ filename\nx"
    assert text(tokenizer, fim.prompt("x", "[PREFIX]")) == "[SUFFIX][PREFIX][PREFIX] x"


@pytest.mark.parametrize("spaced", [True, False])
def test_a_middle_keeps_the_space_that_it_begins_with(make: Make, spaced: bool) -> None:
    tokenizer = make("[PREFIX]", "[SUFFIX]", spaced=spaced)
    tokens = tokenizer.literal(())("  return x\n", inside=True)
    decoder = tokenizer.decoder(inside=True)
    assert "".join(map(decoder.push, tokens)) + decoder.flush() == "  return x\n"


def test_so_does_the_answer(make: Make, tmp_path: Path) -> None:
    tokens = make("[PREFIX]", "[SUFFIX]", spaced=True).literal(())("  return x", inside=True)
    with staged(tmp_path) as stage:
        for path, gap in (
            ("/v1/completions", {"prompt": "x", "suffix": "z"}),
            ("/v1/fim/completions", {"prompt": "x", "suffix": "z"}),
            ("/infill", {"input_prefix": "x", "input_suffix": "z"}),
        ):
            stage.engine.scripts = [[*([TokenEvent(token)] for token in tokens), [FinishEvent("stop")]]]
            answer = httpx2.post(f"{stage.url}{path}", json={"model": "actor", **gap}).text
            assert '"  return x"' in answer


# --- What fits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tiny_model: Path) -> Tokenizer:
    return Tokenizer(tiny_model)


def parts(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[str, str, str]:
    """What stands before the prefix, the prefix, and the suffix."""
    files, _, rest = tokenizer.decode(prompt, special=True).partition("<|fim_prefix|>")
    prefix, _, suffix = rest.removesuffix("<|fim_middle|>").partition("<|fim_suffix|>")
    return files, prefix, suffix


CODE = st.text(alphabet="ab (\n", max_size=300)


GAPS = st.builds(Gap, CODE, CODE, CODE, st.lists(st.builds(File, CODE, CODE), max_size=3))


@settings(deadline=None)
@given(GAPS, st.integers(3, 300))
def test_a_prompt_fits_and_nothing_is_left_out_without_need(qwen: Tokenizer, gap: Gap, room: int) -> None:
    fim = fim_of(qwen)
    whole, nothing = fim.fitting(gap, 10_000)
    assert not nothing
    prompt, truncated = fim.fitting(gap, room)
    assert len(prompt) <= room
    assert truncated == (prompt != whole)
    assert truncated == (len(whole) > room)
    _, before, after = parts(qwen, prompt)
    assert (gap.prefix + gap.line).endswith(before)
    assert gap.suffix.startswith(after)


def test_files_go_first_and_the_first_ones_before_the_others(qwen: Tokenizer) -> None:
    fim = fim_of(qwen)
    files = tuple(File(f"{name}.py", "pass\n" * 20) for name in "abc")
    whole = len(fim.fitting(Gap("x\n", "y\n", "", files), 10_000)[0])
    kept, truncated = fim.fitting(Gap("x\n", "y\n", "", files), whole - 1)
    told, prefix, suffix = parts(qwen, kept)
    assert truncated
    assert "a.py" not in told
    assert told.index("b.py") < told.index("c.py")
    assert (prefix, suffix) == ("x\n", "y\n")


def test_the_prefix_gets_three_quarters_and_the_suffix_one(qwen: Tokenizer) -> None:
    prompt, truncated = fim_of(qwen).fitting(Gap("a\n" * 500, "b\n" * 500), 403)
    _, prefix, suffix = parts(qwen, prompt)
    assert truncated
    assert (len(qwen.encode(prefix)), len(qwen.encode(suffix))) == (300, 100)


@pytest.mark.parametrize(("before", "after"), [(20, 900), (900, 20)])
def test_what_one_does_not_need_the_other_gets(qwen: Tokenizer, before: int, after: int) -> None:
    prompt, _ = fim_of(qwen).fitting(Gap("a\n" * (before // 2), "b\n" * (after // 2)), 403)
    _, prefix, suffix = parts(qwen, prompt)
    assert 380 - 400 // 16 <= max(len(qwen.encode(prefix)), len(qwen.encode(suffix))) <= 380
    assert min(len(qwen.encode(prefix)), len(qwen.encode(suffix))) == 20


def test_the_next_letters_do_not_move_the_cut(qwen: Tokenizer) -> None:
    """Else the whole prompt would have to be read again at every keystroke."""
    fim, typed = fim_of(qwen), "".join(f"x{number} = {number}\n" for number in range(400))
    starts = [tuple(fim.fitting(Gap(typed[: 3000 + keys], "z"), 303)[0][:100]) for keys in range(60)]
    assert len(set(starts)) < 6
