"""Recorded ticks: what is written of each, and that the same comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import DETECTOR, record, snapshot
from themis_triton.adapters.store.recording import _difference, _sum
from themis_triton.core.observation import BatchCounters, ModelCounters, ServerReading
from themis_triton.core.recorded import RecordedTick, join, split

BATCHES = (BatchCounters(1, 7.0, 70.0), BatchCounters(4, 2.0, 60.0))
words = st.lists(st.binary(min_size=8, max_size=8), max_size=20).map(b"".join)


def tick(*servers: tuple[str, tuple[BatchCounters, ...]]) -> RecordedTick:
    readings = [ServerReading(name, 1.0, {DETECTOR: ModelCounters(success=9.0, batches=batches)}) for name, batches in servers]
    made = record(seen=replace(snapshot(), readings=tuple(readings)))
    return RecordedTick(made.snapshot, made.decision, made.plan)


def test_batches_that_are_in_some_readings_move_no_other_number() -> None:
    some, others = tick(("a", BATCHES), ("b", ())), tick(("a", ()), ("b", BATCHES[:1]))
    assert [join(*split(each)) for each in (some, others)] == [some, others]
    shorter = split(tick(("a", ()), ("b", ())))[1]
    assert all(split(each)[1][: len(shorter)] == shorter for each in (some, others))


def test_ticks_of_another_form_are_refused() -> None:
    (_, *parts), numbers = split(tick(("a", BATCHES)))
    for other in (tuple(parts), (1, *parts)):
        with pytest.raises((ValueError, TypeError)):
            join(other, numbers)


@given(words, words)
def test_a_difference_is_undone_whatever_the_lengths(numbers: bytes, before: bytes) -> None:
    assert _sum(_difference(numbers, before), before) == numbers
