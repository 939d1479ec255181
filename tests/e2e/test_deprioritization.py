"""On a real Triton: who waited too long lets the others pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.test_servers import instance_pids
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.results import LoadResult
from themis_triton.load.traces import TraceOptions

pytestmark = [pytest.mark.e2e, pytest.mark.timed]

MODEL, SLO_MS, DEPRIORITIZE_AFTER_S = "video-detector", 300.0, 0.15
CARRIED_RPS = 40
"""By one instance with batches of two: 48 ms each."""


async def overloaded(servers: LocalLauncher, name: str, control: TritonModelControl, trace: Path) -> tuple[LoadResult, set[int], set[int]]:
    """The answers to the trace of a server on the slot of its name, and its instance's processes before and after one was added."""
    server = await servers.wait_ready(await servers.launch(name, name, {MODEL: ModelState(1, 2)}))
    try:
        await servers.warm_up(server)
        load = PipelineLoad("one", (MODEL,), SLO_MS, TraceOptions(str(trace)))
        _, results = await run_load(LoadOptions(server.grpc_address.authority, (load,)))
        before, after = await grown(server, control)
        return results[0], before, after
    finally:
        await servers.stop(server)


async def grown(server: Server, control: TritonModelControl) -> tuple[set[int], set[int]]:
    before = await asyncio.to_thread(instance_pids, server, MODEL)
    await control.change(server, MODEL, ModelState(2, 2))
    return before, await asyncio.to_thread(instance_pids, server, MODEL)


def test_late_requests_let_others_pass_none_fails_and_counts_still_change_in_place(
    launch_config: LocalLaunchConfig, tmp_path: Path, state_directory: Path
) -> None:
    trace = tmp_path / "burst.csv"
    trace.write_text("rate\n" + "".join(f"{2 * CARRIED_RPS if second < 3 else CARRIED_RPS // 2}\n" for second in range(6)))
    # Models on one device slow each other.
    config = replace(launch_config, slots=(DeviceSlot("fifo", "cpu:0"), DeviceSlot("deprioritized", "cpu:1")), stop_timeout_s=2.0)

    async def run() -> Sequence[tuple[LoadResult, set[int], set[int]]]:
        control = TritonModelControl()
        late_after_s: dict[str, dict[str, float]] = {"fifo": {}, "deprioritized": {MODEL: DEPRIORITIZE_AFTER_S}}
        runs = [overloaded(LocalLauncher(config, state_directory, late), name, control, trace) for name, late in late_after_s.items()]
        try:
            return await asyncio.gather(*runs)
        finally:
            await control.close()

    inside = []
    for result, before, after in asyncio.run(run()):
        assert result.ok.all(), result.first_messages
        inside.append(float(np.mean(result.latency_ms <= SLO_MS)))
        assert len(before) == 1
        assert before < after, "adding an instance reloaded the model"
    fifo, deprioritized = inside
    assert deprioritized > fifo + 0.15
