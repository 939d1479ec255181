"""A bounded memory of what was computed, owned by the object whose answers it keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

Value = TypeVar("Value")
_MISSING = object()


class Memory(Generic[Value]):
    """Keeps the `size` values that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The value of a key, built when it is not there."""
        kept = self._values.get(key, _MISSING)  # long keys: each look-up counts
        if kept is not _MISSING:
            self._values.move_to_end(key)
            return cast("Value", kept)
        value = self._values[key] = build()
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        return value
