"""How many tokens messages take, one by one: counting a whole conversation again and again would take too long."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from jackfield.hooks import ChatMessage, ContextTokenizer, JsonObject
from jackfield_compression.content import arguments, calls, texts

REMEMBERED = 50_000
"""Sizes that are kept, of about 150 bytes each."""
IMAGE_TOKENS = 1024
"""For an image, a sound or a file, whose size only the model knows: about what a picture of 900 x 900 pixels takes."""
TOOL_TOKENS = 12
"""For what templates write around a call or a result."""

_PROBE: Sequence[ChatMessage] = ({"role": "user", "content": "x"},)
_LONGER: Sequence[ChatMessage] = (*_PROBE, {"role": "assistant", "content": "x"}, *_PROBE)


def digest(message: object) -> bytes:
    """What stands for a message: equal for equal ones."""
    return blake2b(json.dumps(message, sort_keys=True).encode(), digest_size=16).digest()


class SizeCache:
    """Sizes by digest; the oldest go first. From any thread."""

    def __init__(self, capacity: int = REMEMBERED) -> None:
        self._capacity = capacity
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes, measure: Callable[[], int]) -> int:
        """The size that is known, or else measured now."""
        with self._lock:
            if (known := self._sizes.get(key)) is not None:
                self._sizes.move_to_end(key)
                return known
        size = measure()
        with self._lock:
            self._sizes[key] = size
            while len(self._sizes) > self._capacity:
                self._sizes.popitem(last=False)
        return size


class Sizes:
    """Tokens as one model counts them. They add up to what its chat template makes of them, or to a little more."""

    def __init__(self, tokenizer: ContextTokenizer, model: str, cache: SizeCache) -> None:
        self._tokenizer = tokenizer
        self._model = model.encode()
        self._cache = cache

    def of(self, message: ChatMessage) -> int:
        """Tokens of one message."""
        return self._cache.get(digest(message) + self._model, lambda: self._measure(message))

    def text(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text))

    def around(self, head: Sequence[ChatMessage], tools: Sequence[JsonObject]) -> int:
        """Tokens of the prompt without a conversation: the system prompt, the tools, and what the template adds."""
        key = digest([*head, None, *tools]) + self._model
        return self._cache.get(key, lambda: self._tokenizer.count([*head, *_PROBE], tools) - self.of(_PROBE[0]))

    def _measure(self, message: ChatMessage) -> int:
        said = sum(self.text(text) for place, text in texts(message) if place.kind != "argument")
        content = message.get("content")
        media = sum(_is_medium(part) for part in content) * IMAGE_TOKENS if isinstance(content, list) else 0
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        called = sum(self._call(call) for call in calls(message))
        result = TOOL_TOKENS if message.get("role") == "tool" else 0
        return self._overhead + said + media + self.text(str(thought)) + called + result

    def _call(self, call: JsonObject) -> int:
        function, given = call.get("function") or {}, arguments(call)
        # Templates write the arguments anew, with spaces.
        written = json.dumps(given, ensure_ascii=False) if given else str(function.get("arguments"))
        return self.text(f"{function.get('name')} {written}") + TOOL_TOKENS

    @property
    def _overhead(self) -> int:
        """What a template writes around one message."""
        return self._cache.get(b"around one message" + self._model, self._measure_overhead)

    def _measure_overhead(self) -> int:
        more = self._tokenizer.count(_LONGER) - self._tokenizer.count(_PROBE)
        return max(0, -(-more // 2) - self.text("x"))


def _is_medium(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") not in ("text", "refusal")
