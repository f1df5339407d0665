"""A model's files: its chat template, how it calls tools, and whether its tokens come back as they went in."""

import re
from collections.abc import Iterator
from pathlib import Path

from jackfield.doctor.finding import Finding, failure, ok, skipped, warning
from jackfield.doctor.samples import TEXTS
from jackfield.errors import JackfieldError
from jackfield.models.fim import fill_in_the_middle
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_text
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.tools.formats import format_of, knows_tools

QUESTION, ANSWER = "A question to see.", "An answer before."
CONVERSATION = (
    ("system", "Tell the doctor."),
    ("user", QUESTION),
    ("assistant", ANSWER),
    ("user", "Another one."),
)
MARK = re.compile(r"<\|[^|<>\s]+\|>")
"""What templates put between messages, as nearly all models have it."""
TOOL = {"type": "function", "function": {"name": "see_doctor", "parameters": {"type": "object", "properties": {}}}}


def model_checks(folder: Path | None) -> Iterator[Finding]:
    """All of them; ``folder`` is None for a model that is not here yet."""
    if folder is None:
        yield skipped("tokenizer", "The model is not here yet: jackfield doctor can look at it once it is.")
        return
    tokenizer = Tokenizer(folder)
    yield _round_trips(tokenizer)
    yield _ends(tokenizer)
    yield _special_tokens(tokenizer)
    yield _template(tokenizer)
    yield _tools(tokenizer)
    yield _middle(tokenizer)


def _round_trips(tokenizer: Tokenizer) -> Finding:
    lost = [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text, special=False)) != text]
    if lost:
        told = f"{len(lost)} of {len(TEXTS)} texts do not come back as they went in, for example {lost[0]!r}."
        return warning("tokenizer", told, "Compare tokenizer.json with the original model's.")
    return ok("tokenizer", "Code, spaces, accents and emoji come back as they went in.")


def _ends(tokenizer: Tokenizer) -> Finding:
    ends = sorted(tokenizer.end_tokens)
    if not ends:
        advice = "Add eos_token_id to generation_config.json, as the original model has it."
        return failure("end of answers", "The model has no token that ends an answer: it would never stop.", advice)
    written = [tokenizer.decode([token], special=True) for token in ends]
    split = [
        text for token, text in zip(ends, written, strict=True) if tokenizer.encode(text, special=False) != [token]
    ]
    if split:
        told = f"{split[0]!r} ends an answer, and the tokenizer takes it apart where a template writes it."
        return failure("end of answers", told, "Its entry in tokenizer.json's added_tokens is missing or not special.")
    visible = [text for token, text in zip(ends, written, strict=True) if tokenizer.decode([token])]
    if visible:
        return warning(
            "end of answers", f"{visible[0]!r} would be seen as text.", "Mark it as special in tokenizer.json."
        )
    return ok("end of answers", f"{', '.join(written)}: one token each, which no text shows.")


def _special_tokens(tokenizer: Tokenizer) -> Finding:
    """Those of the vocabulary, and what looks like one in a conversation."""
    text = chat_text(_conversation(tokenizer), tokenizer) if tokenizer.template else ""
    written = MARK.findall(text)
    texts = dict.fromkeys((*written, *tokenizer.special_tokens))
    split = [mark for mark in texts if not _comes_back(mark, tokenizer)]
    if ending := next((mark for mark in split if f"{ANSWER}{mark}" in text), None):
        told = f"The chat template ends answers with {ending!r}, which the tokenizer does not know as one token."
        return failure("special tokens", told, "Take template and tokenizer.json of the same model.")
    if missing := next((mark for mark in split if mark in written), None):
        # Some models were trained like that: Zephyr.
        told = f"The chat template writes {missing!r}, which is plain text to the tokenizer."
        return warning("special tokens", told, "Compare template and tokenizer.json with the original model's.")
    if split:
        told = f"{len(split)} of {len(texts)} do not come back as they went in, for example {split[0]!r}."
        return warning("special tokens", told, "Compare tokenizer.json with the original model's.")
    return ok("special tokens", f"{len(texts)} come back as they went in, each as one token.", count=len(texts))


def _comes_back(text: str, tokenizer: Tokenizer) -> bool:
    token = tokenizer.token(text)
    tokens = tokenizer.encode(text, special=False)
    return tokens == [token] and tokenizer.decode(tokens, special=True) == text


def _conversation(tokenizer: Tokenizer) -> ChatCompletionRequest:
    """One that the template takes: without the system's message if it refuses that.

    Raises:
        JackfieldError: it takes neither.
    """
    whole = [{"role": role, "content": text} for role, text in CONVERSATION]
    try:
        chat_text(_asked(whole), tokenizer)
    except JackfieldError:
        chat_text(_asked(whole[1:]), tokenizer)
        return _asked(whole[1:])
    return _asked(whole)


def _template(tokenizer: Tokenizer) -> Finding:
    if not tokenizer.template:
        advice = "Take the model's chat version, or use /v1/completions."
        return warning("chat template", "There is none, so /v1/chat/completions is not served.", advice)
    conversation = _conversation(tokenizer)
    text = chat_text(conversation, tokenizer)
    taken = CONVERSATION[-len(conversation.messages) :]
    missing = [words for _, words in taken if words not in text]
    if missing:
        return failure("chat template", f"It drops messages: {missing[0]!r} is lost.", "Take the original template.")
    if text == chat_text(conversation, tokenizer, begins_answer=False) and not _ends_like_questions(text):
        told = "It does not begin the answer when it is asked to, so the model may speak for the user."
        return warning("chat template", told, "Take the template of the original model.")
    if taken != CONVERSATION:
        told = "It refuses messages of the system, with which most clients begin, so they get an error."
        return warning("chat template", told, "Have clients send none, or take a template that shows them.")
    return ok("chat template", "It shows system, user and assistant, and begins the answer.")


def _ends_like_questions(text: str) -> bool:
    """Whether all that stands between question and answer is there unasked: Mistral's [/INST]."""
    between = text.partition(QUESTION)[2].partition(ANSWER)[0].strip()
    return bool(between) and text.rpartition(CONVERSATION[-1][1])[2].strip() == between


def _tools(tokenizer: Tokenizer) -> Finding:
    if not tokenizer.template:
        return skipped("tool calls", "There is no chat template.")
    form = format_of(tokenizer.template)
    if not knows_tools(tokenizer.template):
        told = f"The template shows no tools, so the system message does; calls are read as {form.name} has them."
        return warning("tool calls", told, "A small model that was not trained for tools will call them badly.")
    try:
        text = chat_text(_asked([{"role": "user", "content": "What is it?"}], tools=[TOOL]), tokenizer)
    except JackfieldError as error:
        return failure("tool calls", f"The template fails with tools: {error.message}", *error.suggestions)
    if "see_doctor" not in text:
        return failure("tool calls", "The template does not show the tools.", "Take the original model's template.")
    return ok("tool calls", f"The template shows them; calls are read as {form.name} has them (tool_parser).")


def _middle(tokenizer: Tokenizer) -> Finding:
    if fill_in_the_middle(tokenizer) is None:
        return skipped("fill in the middle", "The tokenizer has no tokens for that.")
    return ok("fill in the middle", "The tokenizer has the tokens for it.")


def _asked(messages: list[dict[str, str]], **fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "doctor", "messages": messages, **fields})
