"""A drained server's last requests: when they have ended, as far as its metrics show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.samples import DETECTOR, NOW_S, snapshot
from themis_triton.core.observation import ModelCounters, ServerReading
from themis_triton.daemon.rest_watch import RestWatch


def told(counters: Sequence[ModelCounters | None], step_s: float = 2.0) -> list[int]:
    """The readings, a step apart, at which the watch tells; None: the metrics could not be read."""
    watch, ticks = RestWatch(), []
    for number, each in enumerate(counters):
        reading = ServerReading("a", NOW_S + step_s * number, {} if each is None else {DETECTOR: each}, None if each else "no answer")
        other = replace(reading, server="b", error=None)
        sentences = list(watch.follow(replace(snapshot(), readings=(reading, other)), {"a"}))
        assert all(words.startswith("a has no requests any more: none waits there, and none has ended for ") for words in sentences)
        ticks += [number] * len(sentences)
    return ticks


IDLE, MORE, WAITS, SLOW = (
    ModelCounters(success=9.0, request_us=9e3),
    ModelCounters(success=10.0, request_us=1e4),
    ModelCounters(success=9.0, request_us=9e3, pending=1.0),
    ModelCounters(success=9.0, request_us=27e6),
)


@pytest.mark.parametrize(
    ("counters", "ticks"),
    [
        ([IDLE] * 8, [3]),
        ([IDLE, IDLE, IDLE, MORE, MORE, MORE, MORE], [6]),
        ([WAITS] * 8, []),
        ([IDLE, None, None, IDLE, IDLE], [3]),
        ([SLOW] * 8, [5]),
    ],
)
def test_the_end_of_a_drained_servers_requests_is_told_once(counters: Sequence[ModelCounters | None], ticks: Sequence[int]) -> None:
    assert told(counters) == ticks


def test_a_server_that_is_drained_again_is_told_again() -> None:
    watch = RestWatch()

    def follow(at_s: float, drained: set[str]) -> int:
        readings = (ServerReading("a", NOW_S + at_s, {DETECTOR: IDLE}),)
        return len(list(watch.follow(replace(snapshot(), readings=readings), drained)))

    assert [follow(0.0, {"a"}), follow(6.0, {"a"}), follow(7.0, set()), follow(8.0, {"a"}), follow(14.0, {"a"})] == [0, 1, 0, 0, 1]
