"""The recording: what each tick observed and decided, so that it can be decided again.

It consists of segments, which begin with the settings and the engine's state, and those of chunks of ticks, which can be read each by
itself. In a chunk, a part of a tick is written where it changes, and numbers as their difference to those of the tick before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from themis_triton.adapters.store.frozen_values import OtherVersionError, frozen, thawed
from themis_triton.adapters.store.reader import JournalReader
from themis_triton.core.config import ThemisConfig
from themis_triton.core.record import TickRecord
from themis_triton.core.recorded import Parts, RecordedTick, join, split

INSERT_CHUNK = "insert into recordings (segment, at_s, end_s, ticks, head, body) values (?, ?, ?, ?, ?, ?)"
UNRECORDED_VERSION = 2
"""The last version of the tables without recordings."""
CHUNK_TICKS = 40
SEGMENT_S = 600.0
SEGMENT_SHARE = 8
"""A segment takes at most this fraction of the recording's bound, so that removing the oldest one leaves most of it."""
_NUMBER_BYTES = 8
Change = tuple[dict[int, Any], bytes]
"""The parts that changed, by their index, and the difference of the numbers."""
AddRow = Callable[[str, Callable[[], Sequence[object]]], None]


@dataclass(frozen=True, slots=True)
class Segment:
    """Ticks in a row under the same settings, and the engine's state before the first of them."""

    config: ThemisConfig
    state: Any
    ticks: tuple[RecordedTick, ...]


@dataclass(eq=False)
class _Chunk:
    """Ticks on their way into the journal; its writer compares and encodes them, beside the event loop."""

    segment: float
    head: tuple[ThemisConfig, object] | None
    ticks: list[RecordedTick]
    first_s: float
    last_s: float
    count_bytes: Callable[[int], None]

    def row(self) -> Sequence[object]:
        """The row of the table."""
        return self._row

    @cached_property
    def _row(self) -> Sequence[object]:
        head, body = frozen(self.head) if self.head is not None else None, frozen(list(_changes(self.ticks)))
        self.count_bytes(len(body) + (len(head) if head is not None else 0))
        ticks, self.head, self.ticks = len(self.ticks), None, []
        return (self.segment, self.first_s, self.last_s, ticks, head, body)


class Recording:
    """Takes every tick of a run. A segment ends after ten minutes, and where the state or the settings were changed between two ticks.

    `max_bytes` bounds it in the journal; 0: nothing is recorded.
    """

    def __init__(self, add_row: AddRow, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._add_row = add_row
        self._config: ThemisConfig | None = None
        self._state: object = None
        self._segment = self._first_s = self._last_s = 0.0
        self._segment_bytes = 0
        self._head: tuple[ThemisConfig, object] | None = None
        self._ticks: list[RecordedTick] = []

    def take(self, before: object, after: object, record: TickRecord, config: ThemisConfig) -> None:
        """Add a tick: the engine's state before and after it, and the settings that it decided by."""
        if not self.max_bytes:
            return
        at_s = record.snapshot.at_s
        full = self._segment_bytes * SEGMENT_SHARE > self.max_bytes
        if self._state is not before or self._config is not config or full or not 0.0 <= at_s - self._segment < SEGMENT_S:
            self.finish()
            self._segment, self._segment_bytes, self._head = at_s, 0, (config, before)
        if not self._ticks:
            self._first_s = at_s
        self._ticks.append(RecordedTick(record.snapshot, record.decision, record.plan))
        self._state, self._config, self._last_s = after, config, at_s
        if len(self._ticks) >= CHUNK_TICKS:
            self.finish()

    def finish(self) -> None:
        """Hand the ticks of the unfinished chunk on."""
        if self._ticks:
            chunk = _Chunk(self._segment, self._head, self._ticks, self._first_s, self._last_s, self._count)
            self._add_row(INSERT_CHUNK, chunk.row)
        self._head, self._ticks = None, []

    def _count(self, size: int) -> None:
        self._segment_bytes += size


def _changes(ticks: Sequence[RecordedTick]) -> Iterator[Change]:
    """What differs in each tick from the one before; all of the first."""
    before: Parts = ()
    numbers_before = b""
    for tick in ticks:
        parts, values = split(tick)
        numbers = array("d", values).tobytes()
        changed = {index: part for index, part in enumerate(parts) if not before or part != before[index]}
        yield changed, _difference(numbers, numbers_before)
        before, numbers_before = parts, numbers


def _difference(numbers: bytes, before: bytes) -> bytes:
    """What differs, with the bytes of the same place in each number side by side: they compress best so. Its own inverse but for that."""
    return np.frombuffer(_mixed(numbers, before), dtype=np.uint8).reshape(-1, _NUMBER_BYTES).T.tobytes()


def _sum(difference: bytes, before: bytes) -> bytes:
    count = len(difference) // _NUMBER_BYTES
    mixed = bytearray(len(difference))
    for place in range(_NUMBER_BYTES):
        mixed[place::_NUMBER_BYTES] = difference[place * count : (place + 1) * count]
    return _mixed(bytes(mixed), before)


def _mixed(one: bytes, other: bytes) -> bytes:
    """As long as the first: what the other one lacks is taken as it is."""
    other = other[: len(one)].ljust(len(one), b"\0")
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


def read_chunk(body: bytes) -> Iterator[RecordedTick]:
    """The ticks of a chunk. ValueError where it is damaged, OtherVersionError where it is of another version."""
    parts: Mapping[int, Any] = {}
    numbers = b""
    for changed, difference in thawed(body):
        parts, numbers = {**parts, **changed}, _sum(difference, numbers)
        yield _joined(parts, numbers)


def _joined(parts: Mapping[int, Any], numbers: bytes) -> RecordedTick:
    try:
        return join(tuple(parts[index] for index in range(len(parts))), array("d", numbers))
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise OtherVersionError(error) from error


def read_segment(chunks: Sequence[tuple[Any, ...]]) -> Segment:
    """The segment of chunks (head and body) in their order. ValueError where its beginning is missing, or as `read_chunk`."""
    head = chunks[0][0]
    if head is None:
        raise ValueError("the beginning of the segment is missing")
    config, state = thawed(head)
    return Segment(config, state, tuple(tick for _, body in chunks for tick in read_chunk(body)))


def read_segments(journal: JournalReader, from_s: float, until_s: float) -> tuple[list[Segment], int]:
    """The recorded segments that overlap a span, oldest first, and how many more another version of Themis wrote.

    One whose end is not written yet, or is lost, is read as far as it is. ValueError where one is damaged.
    """
    if journal.version <= UNRECORDED_VERSION:
        return [], 0
    query = "select segment from recordings where end_s >= ? and at_s <= ? group by segment order by min(seq)"
    found, others = list[Segment](), 0
    for (segment,) in journal.rows(query, (from_s, until_s)):
        try:
            found.append(read_segment(journal.rows("select head, body from recordings where segment = ? order by seq", (segment,))))
        except OtherVersionError:
            others += 1
    return found, others


def recorded_span(journal: JournalReader) -> tuple[float, float] | None:
    """The times of the first and the last recorded tick; None where nothing is recorded."""
    if journal.version <= UNRECORDED_VERSION:
        return None
    ((first, last),) = journal.rows("select min(at_s), max(end_s) from recordings")
    return None if first is None else (first, last)
