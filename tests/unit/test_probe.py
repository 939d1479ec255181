"""Operations that the server refuses are not followed by their opposite, which would then change nothing and seem safe."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from tests.unit.samples import DETECTOR
from tests.unit.samples import server as make_server
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import ModelState, Server
from themis_triton.load.requests import StageRequest
from themis_triton.profile.bench import Bench
from themis_triton.profile.probe import OpenLoad, Prober, probe_devices

HOME, SECOND = "cpu:0", "cpu:1"
ONE = ModelState(0, 1).spread_over({HOME: 1})


class Control:
    """Records the changes with the devices on which memory is read during each; refuses all of them or none."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal = refusal
        self.changes: list[dict[str, int]] = []
        self.used: list[list[str]] = []

    async def change(self, server: Server, _: str, state: ModelState) -> ModelState:
        self.changes.append(dict(state.spread))
        self.used.append([device for device in server.devices if server.runs_on(device)])
        if self.refusal is not None:
            raise ChangeRefusedError(self.refusal)
        return state


def prober_of(control: Control) -> Prober:
    server = replace(make_server("scratch"), device=HOME, reach=(SECOND,), models={DETECTOR: ONE})
    parts = cast("Any", SimpleNamespace())
    bench = Bench(DETECTOR, server, parts, parts, parts, parts, cast("Any", control))
    return Prober(bench, OpenLoad(None, StageRequest(None), 1.0), 0.0, lambda _: None)


def test_a_device_is_added_and_removed_and_memory_is_read_on_both() -> None:
    control = Control()
    added, removed = asyncio.run(probe_devices(prober_of(control), SECOND))
    assert control.changes == [{HOME: 1, SECOND: 1}, {HOME: 1}]
    assert control.used == [[HOME, SECOND]] * 2
    assert [operation is not None and operation.refused for operation in (added, removed)] == [None, None]


def test_a_refused_device_is_not_removed_again() -> None:
    control = Control("cannot be bound")
    prober = prober_of(control)
    added, removed = asyncio.run(probe_devices(prober, SECOND))
    assert control.changes == [{HOME: 1, SECOND: 1}]
    assert added is not None
    assert added.refused == "cannot be bound"
    assert removed is None
    assert prober.bench.server.models == {DETECTOR: ONE}, "memory is read where it runs"


def test_without_a_further_device_none_is_changed() -> None:
    control = Control()
    assert asyncio.run(probe_devices(prober_of(control), None)) == (None, None)
    assert control.changes == []
