"""A launch is seen from the moment that it is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import config, launch, server
from themis_triton.core.action import OutcomeKind, Plan
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import Phase
from themis_triton.tick import announced, observe


@pytest.mark.parametrize("fails", [False, True])
def test_a_server_is_in_the_snapshot_before_its_process_is_there_and_only_once_afterwards(
    fails: bool, launch_config: LocalLaunchConfig
) -> None:
    async def scenario() -> None:
        bench, rules = Bench(server("a")), replace(config(), launch=launch_config)
        bench.launcher.failing = {"launch"} if fails else set()
        bench.executor.submit(Plan("d", (launch("cpu:1", "new"),)))
        (coming,) = announced(bench.executor, rules)
        assert (coming.name, coming.slot, coming.device, coming.phase) == ("new", "cpu:1", "cpu:7", Phase.LAUNCHING)
        assert (coming.launched, coming.process, coming.models) == (True, None, launch().models)
        assert "new" not in bench.fleet
        assert bench.recorder.servers.keys() == {"a"}
        (outcome,) = await bench.settled()
        assert outcome.kind is (OutcomeKind.REFUSED if fails else OutcomeKind.DONE)
        assert announced(bench.executor, rules) == ()
        after = [(each.name, each.phase) for each in (await observe(bench.world, rules)).servers]
        assert after == [("a", Phase.SERVING)] + ([] if fails else [("new", Phase.SERVING)])
        await bench.supervisor.close()

    asyncio.run(scenario())


@pytest.fixture
def launch_config(tmp_path_factory: pytest.TempPathFactory) -> LocalLaunchConfig:
    return LocalLaunchConfig((DeviceSlot("cpu:1", "cpu:7"),), tmp_path_factory.mktemp("models"))
