"""Servers on several devices: what a state says of them, and the settings' devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.samples import config, server
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState


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
