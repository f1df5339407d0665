"""Items of the last answers, in memory, for clients that refer to what nobody asked to store.

OpenAI stores everything that is not forbidden. The AI SDK counts on that, and sends references to items instead of the
items themselves, from the first call of a tool on.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence

from jackfield.protocol.base import JsonObject


class RecentItems:
    """Remembers items by owner and id; the event loop's.

    Args:
        max_bytes: how much of them, as JSON; the oldest go.
    """

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[tuple[str, str], str] = OrderedDict()

    def remember(self, owner: str, items: Sequence[JsonObject]) -> None:
        """Keep these, each with an id, and whatever else there is room for."""
        for item in items:
            body, key = json.dumps(item), (owner, item["id"])
            self._bytes += len(body) - len(self._items.pop(key, ""))
            self._items[key] = body
        while self._bytes > self._max_bytes:
            _, body = self._items.popitem(last=False)
            self._bytes -= len(body)

    def find(self, owner: str, ids: Sequence[str]) -> dict[str, JsonObject]:
        """Those of these items that are remembered, by id."""
        return {name: json.loads(self._items[owner, name]) for name in ids if (owner, name) in self._items}
