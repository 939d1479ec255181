"""A bounded memory of answers that never fall as any number that they depend on rises: many follow from those that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from operator import ge, le

from themis_triton.core.memory import Memory

POINTS = 48

Point = tuple[float, ...]


class Brackets:
    """Keeps the answers at the last points of the `size` questions that were asked last."""

    def __init__(self, size: int) -> None:
        self._known: Memory[list[tuple[Point, float]]] = Memory(size)

    def get(self, question: Hashable, point: Point, find: Callable[[], float]) -> float:
        """The answer at a point: known where points below and above it in every number have one answer, else found."""
        known = self._known.get(question, list)
        low, high = -math.inf, math.inf
        for other, answer in known:
            if answer > low and other <= point and all(map(le, other, point)):  # tuples compare at their first difference: quick
                low = answer
            if answer < high and other >= point and all(map(ge, other, point)):
                high = answer
        if low == high:
            return low
        answer = find()
        known.append((point, answer))
        if len(known) > POINTS:
            del known[0]
        return answer
