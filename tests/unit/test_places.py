"""Servers on several devices: what a state says of them, and the settings' devices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import NOW_S, config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState
from themis_triton.daemon.components import Components, build_observer
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyState


def test_a_state_on_several_devices_counts_them_all_and_leaves_empty_ones_out() -> None:
    state = ModelState(1, 8).spread_over({"cpu:0": 2, "cpu:1": 0, "cpu:2": 1})
    assert (state.instances, state.spread) == (3, (("cpu:0", 2), ("cpu:2", 1)))
    assert [state.on(device) for device in ("cpu:0", "cpu:1", "cpu:2")] == [2, 0, 1]


def test_what_a_change_adds_is_known_by_device() -> None:
    before = ModelState(0, 8).spread_over({"cpu:0": 2, "cpu:1": 1})
    after = ModelState(0, 8).spread_over({"cpu:0": 1, "cpu:1": 2, "cpu:2": 1})
    assert after.added(before) == {"cpu:1": 1, "cpu:2": 1}
    assert ModelState(3, 8).added(ModelState(1, 4)) == {"": 2}
    assert ModelState(1, 8).added(ModelState(3, 8)) == {}


def test_a_server_that_may_use_several_devices_says_where_its_instances_are() -> None:
    alone = server("a")
    wide = replace(alone, reach=("cpu:1",))
    home = wide.device
    assert wide.devices == (home, "cpu:1")
    assert all(state.spread == ((home, state.instances),) for state in wide.models.values())
    assert [wide.runs_on(device) for device in wide.devices] == [True, False]
    assert replace(wide, reach=()).models == alone.models


@pytest.mark.parametrize(("device", "places"), [("cpu:0", 3), ("cpu:1", 1), ("cpu:7", 1)])
def test_a_device_holds_as_many_servers_as_the_settings_put_there(device: str, places: int) -> None:
    base = config()
    assert base.launch is not None
    slots = tuple(DeviceSlot(f"s{number}", "cpu:0") for number in range(3))
    launch = LocalLaunchConfig((*slots, DeviceSlot("other", "cpu:1")), base.launch.model_repository, reach=("cpu:0", "cpu:7"))
    changed = replace(base, servers=(), launch=launch)
    assert changed.places_on(device) == places
    assert changed.devices == ("cpu:0", "cpu:1", "cpu:7")
    assert launch.reach_from("cpu:0") == ("cpu:7",)


def test_which_devices_were_changed_outlives_the_sidecar(tmp_path: Path) -> None:
    settings, added = replace(config(), state_directory=tmp_path), ("a", "cpu:1")

    def started() -> tuple[Loop, Journal]:
        bench, clock, journal = Bench(server("a")), SystemClock(), Journal(tmp_path / "journal.sqlite")
        observer, envoy = build_observer(settings, clock), EnvoyProcess(settings.envoy, tmp_path)
        ports = bench.world, bench.control, bench.launcher
        components = Components(settings, *ports, journal, envoy, EnvoyFiles(settings.envoy), clock, observer)
        loop = Loop(components, Planner(build_rules(settings)), StatusBoard(settings, NOW_S), Exporter())
        loop.recall_places()
        return loop, journal

    async def scenario() -> None:
        first, journal = started()
        assert first.state.policy.changed_places == frozenset()
        first.state = replace(first.state, policy=PolicyState(changed_places=frozenset({added})))
        await first.tick()
        assert journal.flush()
        again, journal_again = started()
        assert again.state.policy.changed_places == {added}
        (tmp_path / "journal.sqlite").unlink()
        await again.tick()
        assert journal_again.flush()
        await again.tick()  # told that the file was replaced
        assert journal_again.flush()
        journal.close()
        journal_again.close()
        third, last = started()
        assert third.state.policy.changed_places == {added}
        last.close()

    asyncio.run(scenario())
