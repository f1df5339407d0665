"""Leaves out the oldest messages."""

from jackfield_compression.conversation import Package
from jackfield_compression.draft import Draft


def leave_out_oldest(draft: Draft, target: int, strategy: str) -> None:
    """Leave out as much as it takes, the oldest first; nothing if that would not make the conversation shorter."""
    excess = draft.tokens + draft.lead_tokens - target
    gone: list[Package] = []
    freed = 0
    for package in draft.conversation.packages if draft.tokens > target else ():
        if freed >= excess:
            break
        gone.append(package)
        freed += draft.size(package)
    if freed > draft.lead_tokens:
        draft.counts[strategy]["messages"] += draft.drop(gone)
