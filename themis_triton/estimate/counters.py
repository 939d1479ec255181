"""Cumulative counters over time, safe against restarts. Those that are read together are columns of one table, as an immutable value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from themis_triton.core.construction import quick_init
from themis_triton.estimate.counter_kernels import OTHERS, append, demand_rates, increases, rates
from themis_triton.solver.surface import FloatArray


class RateWindows(NamedTuple):
    """The windows (s) over which plans use rates: the newest second, the stable rate, peaks of the newest, and so on.

    `dispersion_s`: of single counts; `dispersion_over_s`: of all whose dispersion counts.
    """

    rate_s: float
    stable_s: float
    burst_s: float
    newest_s: float
    growth_s: float
    trend_s: float
    dispersion_s: float
    dispersion_over_s: float


@quick_init
@dataclass(frozen=True, slots=True, eq=False)
class CounterTable:
    """Totals [kind, column, reading] at ascending times (s); a counter that restarts at zero continues.

    `names`: of the columns. `raw`: the counters [kind, column] as last read.
    """

    names: tuple[str, ...]
    times_s: FloatArray
    totals: FloatArray
    raw: FloatArray

    def __post_init__(self) -> None:
        """Nested sequences become arrays."""
        for name in ("times_s", "totals", "raw"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))

    def __reduce__(self) -> tuple[type[CounterTable], tuple[object, ...]]:
        """Copies are made from plain values."""
        return CounterTable, (self.names, tuple(self.times_s.tolist()), self.totals.tolist(), self.raw.tolist())

    @property
    def last_s(self) -> float:
        """The time of the last reading."""
        return float(self.times_s[-1])

    @property
    def span_s(self) -> float:
        """Seconds of history."""
        return float(self.times_s[-1] - self.times_s[0])

    def append(self, at_s: float, raw: FloatArray, keep_s: float) -> CounterTable:
        """With one more reading; readings older than `keep_s` are dropped, a reading from the past is ignored."""
        if at_s <= self.times_s[-1]:
            return self
        first = int(self.times_s.searchsorted(at_s - keep_s, "right"))
        kinds, columns, readings = self.totals.shape
        times_s, totals = np.empty(readings - first + 1), np.empty((kinds, columns, readings - first + 1))
        times_s[:-1], times_s[-1] = self.times_s[first:], at_s
        raw = np.ascontiguousarray(raw)
        append(self.totals, self.raw, raw, first, totals)
        return CounterTable(self.names, times_s, totals, raw)

    def only(self, names: Sequence[str]) -> CounterTable:
        """The columns of these names, in their order."""
        columns = list(map(self.names.index, names))
        return CounterTable(tuple(names), self.times_s, self.totals[:, columns], self.raw[:, columns])

    def beside(self, other: CounterTable) -> CounterTable:
        """The columns of both; they were read at the same times."""
        totals, raw = np.concatenate((self.totals, other.totals), axis=1), np.concatenate((self.raw, other.raw), axis=1)
        return CounterTable((*self.names, *other.names), self.times_s, totals, raw)

    def increases(self, start_s: float, end_s: float) -> FloatArray:
        """Growth of the totals between two times, interpolated [column, kind]; the ends hold beyond them."""
        out = np.empty((len(self.names), len(self.raw)))
        increases(self.times_s, self.totals, start_s, end_s, out)
        return out

    def rates(self, kind: int, window_s: float, windows: int = 1, lag_s: float = 0.0) -> FloatArray:
        """Mean rates (1/s) of consecutive windows [window, column], the newest first, which ended `lag_s` before the last reading.

        A shorter history shortens the windows.
        """
        out = np.empty((windows, len(self.names)))
        rates(self.times_s, self.totals, kind, window_s, lag_s, out)
        return out

    def demand_rates(self, windows: RateWindows) -> FloatArray:
        """What plans use of the rates of the first kind, a row each [row, column], and then the rates of the other kinds."""
        out, scratch = np.empty((OTHERS + len(self.raw) - 1, len(self.names))), np.empty((3, len(self.names)))
        demand_rates(self.times_s, self.totals, *windows, out, scratch)
        return out


@dataclass(frozen=True, slots=True)
class Counters:
    """Named counters in tables, each of those that were read at the same times."""

    tables: tuple[CounterTable, ...] = ()

    @property
    def span_s(self) -> float:
        """Seconds of the longest history."""
        return max((table.span_s for table in self.tables), default=0.0)

    def append(self, at_s: float, names: tuple[str, ...], raw: FloatArray, keep_s: float) -> Counters:
        """With one more reading [kind, column] of these names; others stay as they are."""
        if len(self.tables) == 1 and self.tables[0].names == names:  # the usual case
            return Counters((self.tables[0].append(at_s, raw, keep_s),))
        column, tables = {name: number for number, name in enumerate(names)}, list[CounterTable]()
        for table in self.tables:
            read = [name for name in table.names if name in column]
            rest = [name for name in table.names if name not in column]
            tables += [table.only(rest)] if rest else []
            tables += [table.only(read).append(at_s, raw[:, [column[name] for name in read]], keep_s)] if read else []
        known = {name for table in tables for name in table.names}
        new = [name for name in names if name not in known]
        if new:
            first = raw[:, [column[name] for name in new]]
            tables.append(CounterTable(tuple(new), np.array([at_s]), np.zeros((*first.shape, 1)), first))
        return Counters(tuple(_joined(tables, names)))

    def by_name(self, of: Callable[[CounterTable], FloatArray]) -> dict[str, float]:
        """What each table says of its columns, by their names."""
        return {name: value for table in self.tables for name, value in zip(table.names, of(table).tolist(), strict=True)}

    def rates(self, kind: int, window_s: float) -> dict[str, float]:
        """The mean rate (1/s) of each over the window up to its last reading."""
        return self.by_name(lambda table: table.rates(kind, window_s)[0])

    def increases(self, kind: int, start_s: float, end_s: float) -> dict[str, float]:
        """The growth of each between two times."""
        return self.by_name(lambda table: table.increases(start_s, end_s)[:, kind])


NO_COUNTERS = Counters()


def _joined(tables: Iterable[CounterTable], names: tuple[str, ...]) -> list[CounterTable]:
    """The tables, those with the same times as one, and one that holds just these names in their order."""
    joined: dict[bytes, CounterTable] = {}
    for table in tables:
        key = table.times_s.tobytes()
        joined[key] = joined[key].beside(table) if key in joined else table
    return [table.only(names) if set(table.names) == set(names) else table for table in joined.values()]
