"""The times of readings, shared by all counters that are read together, so that windows are looked up once for all of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self


class Window(NamedTuple):
    """A window between readings: the total at its start lies `start_share` of the way from reading `start` to `after_start`, and so on."""

    start: int
    after_start: int
    start_share: float
    end: int
    after_end: int
    end_share: float
    duration_s: float


NO_WINDOW = Window(0, 0, 0.0, 0, 0, 0.0, 1.0)
"""In place of a window outside the readings: nothing is counted in it."""


class TimeAxis(tuple[float, ...]):  # noqa: SLOT001 - a tuple has no room for slots
    """Ascending times (s). Series that share the object share what is looked up in it."""

    _windows: dict[tuple[float, int, float], tuple[Window, ...]]

    def __new__(cls, times_s: Iterable[float] = ()) -> Self:
        """An axis with nothing looked up yet."""
        axis = super().__new__(cls, times_s)
        axis._windows = {}
        return axis

    def __reduce__(self) -> tuple[type[TimeAxis], tuple[tuple[float, ...]]]:
        """Copies have nothing looked up."""
        return TimeAxis, (tuple(self),)

    def windows(self, window_s: float, count: int, lag_s: float = 0.0) -> tuple[Window, ...]:
        """So many consecutive windows, the newest first, which ends `lag_s` before the last time; the first time cuts them off."""
        key = (window_s, count, lag_s)
        if key not in self._windows:
            self._windows[key] = tuple(self._find_windows(*key))
        return self._windows[key]

    def _find_windows(self, window_s: float, count: int, lag_s: float) -> Iterator[Window]:
        last = len(self)
        for index in range(count):
            end_s = self[-1] - lag_s - index * window_s
            start_s = max(end_s - window_s, self[0])
            if end_s <= start_s:
                yield NO_WINDOW
                continue
            last = bisect_right(self, end_s, 0, last)
            first = bisect_right(self, start_s, 0, last)
            yield Window(*self._place(first, start_s), *self._place(last, end_s), end_s - start_s)

    def _place(self, index: int, time_s: float) -> tuple[int, int, float]:
        """The readings before and after a time, and the share of the way between them; `index` is that of the one after."""
        if index == len(self):
            return index - 1, index - 1, 0.0
        return index - 1, index, (time_s - self[index - 1]) / (self[index] - self[index - 1])


NO_TIMES = TimeAxis()


class Axes:
    """The axes of one tick: those that shared one before share one again with a further reading."""

    def __init__(self) -> None:
        self._appended: dict[tuple[int, float, float], tuple[TimeAxis, int, TimeAxis]] = {}

    def append(self, axis: TimeAxis, at_s: float, keep_s: float) -> tuple[int, TimeAxis]:
        """The axis with one more time; times older than `keep_s` are dropped, and their number is returned too."""
        key = (id(axis), at_s, keep_s)
        if key not in self._appended:
            first = bisect_right(axis, at_s - keep_s)
            self._appended[key] = axis, first, TimeAxis((*axis[first:], at_s))  # the old one is kept for its identity
        _, first, appended = self._appended[key]
        return first, appended
