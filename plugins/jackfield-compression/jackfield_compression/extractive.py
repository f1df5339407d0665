"""Takes away what is said again later, and the middle of what is long."""

from collections.abc import Iterable
from hashlib import blake2b

from jackfield_compression.draft import Draft
from jackfield_compression.excerpt import Allowance, excerpt
from jackfield_compression.passages import Passage

SHORTEST = 120
"""Characters of a passage that is worth a note in its place."""

REPEATED = "[Left out here: a later message has the last version of this.]"


def extract(draft: Draft, target: int, allowance: Allowance) -> None:
    """Collapse repetitions, then shorten long outputs from the oldest on, more and more, down to a line or two each.

    What came last stays as it is: the model is about to read it.
    """
    if draft.tokens > target:
        collapse(draft)
    newest = draft.conversation.units[-1] if draft.conversation.units else ()
    older = [index for index in draft.editable if index not in newest]
    shortened: set[int] = set()
    while allowance and draft.tokens > target:
        shortened |= shorten(draft, target, allowance, older)
        allowance = allowance.halved()
    draft.counts["extractive"]["shortened"] = len(shortened)


def squeeze(draft: Draft, target: int, allowance: Allowance) -> None:
    """The last resort: shorten everything that may be shortened, even what came last, down to nothing."""
    shortened: set[int] = set()
    while draft.tokens > target:
        shortened |= shorten(draft, target, allowance, draft.editable)
        if not allowance:
            break
        allowance = allowance.halved()
    draft.counts["last_resort"]["shortened"] = len(shortened)


def collapse(draft: Draft) -> None:
    """Keep only the last version of files and outputs that are there more than once."""
    later: dict[bytes, int] = {}
    editable = set(draft.editable)
    for index in reversed(draft.kept):
        repeated = {}
        for passage, text in reversed(draft.passages(index).items()):
            if len(text) < SHORTEST:
                continue
            identities = list(_identities(passage, text))
            # A last version that is much shorter does not replace the others: it may be an error, or a part.
            if index in editable and any(later.get(identity, 0) >= len(text) / 2 for identity in identities):
                repeated[passage] = REPEATED + "\n" * text.endswith("\n")
            later |= {identity: max(len(text), later.get(identity, 0)) for identity in identities}
        if repeated and draft.collapse(index, repeated):
            draft.counts["extractive"]["repeated"] += len(repeated)


def _identities(passage: Passage, text: str) -> Iterable[bytes]:
    """What tells that two passages are versions of the same thing: their text, or what they are called."""
    yield blake2b(text.strip().encode(errors="replace"), digest_size=16).digest()
    if passage.label:
        yield b"label " + passage.label.encode(errors="replace")


def shorten(draft: Draft, target: int, allowance: Allowance, indices: Iterable[int]) -> set[int]:
    """Excerpts in place of long passages, message by message, until it is short enough; tells in which messages."""
    done: set[int] = set()
    for index in indices:
        if draft.tokens <= target:
            break
        whole = draft.passages(index)
        short = {one: excerpt(text, allowance, draft.words, one.path) for one, text in whole.items()}
        new = {one: text for one, text in short.items() if len(text) < len(whole[one])}
        if new and draft.shorten(index, new):
            done.add(index)
    return done
