"""The five situations of a growth under a standing backlog, on a real Triton: one model each in one server, a second apart."""

from __future__ import annotations

import asyncio
import py_compile
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from themis_triton.adapters.triton.model_config import parse_config, to_json, with_state
from themis_triton.core.address import Address
from themis_triton.core.config import (
    DeviceSlot,
    EnvoyConfig,
    LatencyTable,
    LocalLaunchConfig,
    ModelConfig,
    ModelProfile,
    PipelineConfig,
    ThemisConfig,
)
from themis_triton.core.fleet import ModelState
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.setup import PREROLL_S, build_simulation
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import triton_world

SERVICE_MS, PER_REQUEST_MS = 40.0, 28.0
"""Service time of one request, and of each further one of its batch."""
AROUND_MS = 0.8
"""Time of a batch outside the model's sleep, which is shorter by it."""
INIT_S = 0.3
START_S, CONTROL_S = 0.1, 0.01
"""Start of an instance's Python process, and a call's own time."""
ASKED_AT_S, LOAD_S = 1.5, 6.0
TIMEOUT_S = 60.0

_MODEL = f"""
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        time.sleep({INIT_S})

    def execute(self, requests):
        time.sleep(({SERVICE_MS - PER_REQUEST_MS} + {PER_REQUEST_MS} * len(requests) - {AROUND_MS}) / 1000.0)
        answer = np.array([[os.getpid()]], dtype=np.int64)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("PID", answer)]) for _ in requests]
"""
_CONFIG = """
backend: "python"
input [{ name: "INPUT", data_type: TYPE_INT64, dims: [1] }]
output [{ name: "PID", data_type: TYPE_INT64, dims: [1] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One situation: regular arrivals at a rate, and the counts asked for one after the other, each once the last call has returned."""

    name: str
    rate_rps: float
    counts: tuple[int, ...]
    batching: bool = False

    @property
    def max_batch(self) -> int:
        """Largest batch that the server forms."""
        return 4 if self.batching else 1

    @property
    def batch_s(self) -> float:
        """Service time of a full batch."""
        return (SERVICE_MS + PER_REQUEST_MS * (self.max_batch - 1)) / 1000.0

    @property
    def arrival_s(self) -> list[float]:
        """Arrivals from the load's start."""
        return [number / self.rate_rps for number in range(int(LOAD_S * self.rate_rps))]


CASES = (
    Case("steps-40", 40.0, (2, 3)),
    Case("steps-70", 70.0, (2, 4)),
    Case("at-once-70", 70.0, (4,)),
    Case("steps-batching-80", 80.0, (2, 3), batching=True),
    Case("at-once-batching-80", 80.0, (4,), batching=True),
)


@dataclass(slots=True)
class Result:
    """One run: the first answer of each instance and the return of each call (s from the load's start), and the longest latency (s)."""

    first_answer_s: list[float] = field(default_factory=list)
    returned_s: list[float] = field(default_factory=list)
    longest_s: float = 0.0
    failed: int = 0


def write_repository(directory: Path) -> Path:
    """A model repository with one model a case."""
    for case in CASES:
        folder = directory / case.name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(_MODEL)
        # Written by the server's first start, it would make the first change a reload.
        py_compile.compile(str(folder / "1" / "model.py"), doraise=True)
        (folder / "config.pbtxt").write_text(
            f'name: "{case.name}"\nmax_batch_size: {case.max_batch}\n{_CONFIG}' + ("dynamic_batching { }\n" if case.batching else "")
        )
    return directory


async def run_cases(grpc_address: str, repository: Path | None, cases: tuple[Case, ...] = CASES, apart_s: float = 1.0) -> dict[str, Result]:
    """Run the cases side by side, each beginning a moment after the one before it. Without a repository nothing is asked to grow."""
    start_s = time.monotonic() + 0.2
    async with triton.InferenceServerClient(grpc_address) as client:
        runs = [_run(client, repository, case, start_s + apart_s * number) for number, case in enumerate(cases)]
        return dict(zip([case.name for case in cases], await asyncio.gather(*runs), strict=True))


async def _run(client: Any, repository: Path | None, case: Case, start_s: float) -> Result:
    result = Result()
    seen: dict[int, float] = {}
    async with asyncio.TaskGroup() as group:
        if repository is not None:
            group.create_task(_grow(client, repository, case, start_s, result))
        for at_s in case.arrival_s:
            group.create_task(_ask(client, case, start_s, at_s, result, seen))
    result.first_answer_s = sorted(seen.values())
    return result


async def _grow(client: Any, repository: Path, case: Case, start_s: float, result: Result) -> None:
    await _until(start_s + ASKED_AT_S)
    base = parse_config((repository / case.name / "config.pbtxt").read_text(), str(repository))
    for count in case.counts:
        override = to_json(with_state(base, ModelState(count, case.max_batch, 0), None))
        await client.load_model(case.name, config=override, client_timeout=TIMEOUT_S)
        result.returned_s.append(time.monotonic() - start_s)


async def _ask(client: Any, case: Case, start_s: float, at_s: float, result: Result, seen: dict[int, float]) -> None:
    await _until(start_s + at_s)
    tensor = triton.InferInput("INPUT", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.int64))
    try:
        answer = await client.infer(case.name, [tensor], client_timeout=TIMEOUT_S)
    except triton.InferenceServerException:
        result.failed += 1
        return
    now_s = time.monotonic() - start_s
    seen.setdefault(int(answer.as_numpy("PID")[0, 0]), now_s)
    result.longest_s = max(result.longest_s, now_s - at_s)


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))


def simulate_case(case: Case) -> Result:
    """The same situation in the simulator."""

    async def main() -> Result:
        config = _config(case)
        arrivals = np.array(case.arrival_s)
        world = replace(triton_world(), control_s=CONTROL_S)
        simulation = build_simulation(config, {case.name: arrivals}, world, 0)
        cluster = Cluster(config, world, simulation, 0)
        cluster.start("s", 0, {case.name: ModelState(1, case.max_batch)})
        cluster.hold("s")
        simulation.route(0, (0,))
        await asyncio.sleep(PREROLL_S + ASKED_AT_S)
        returned_s = []
        for count in case.counts:
            await cluster.change("s", case.name, ModelState(count, case.max_batch))
            returned_s.append(cluster.now_s() - PREROLL_S)
        simulation.advance(PREROLL_S + TIMEOUT_S)
        engine = simulation.engine
        added = [
            after.at_s - PREROLL_S + case.batch_s
            for before, after in pairwise(cluster.usage)
            for _ in range(after.instances - before.instances)
            if after.at_s < engine.ended_s.max()
        ]
        first_s = float((engine.ended_s - PREROLL_S).min())
        return Result([first_s, *added], returned_s, float((engine.ended_s - engine.arrival_s).max()), int(engine.failed.sum()))

    return run_virtual(main())


def _config(case: Case) -> ThemisConfig:
    """Settings with the case's model alone, which no other instance slows."""
    batches = tuple(range(1, case.max_batch + 1))
    rows = tuple((SERVICE_MS + PER_REQUEST_MS * (batch - 1),) * 4 for batch in batches)
    profile = ModelProfile(LatencyTable(batches, (1, 2, 3, 4), rows), instance_init_s=START_S + INIT_S)
    address = Address("127.0.0.1", 1)
    return ThemisConfig(
        state_directory=Path("state"),
        models={case.name: ModelConfig(case.name, profile, max_instances=4, max_batch=case.max_batch)},
        pipelines=(PipelineConfig(case.name, (case.name,), slo_ms=300.0),),
        servers=(),
        envoy=EnvoyConfig(address, address, address, Path("envoy")),
        launch=LocalLaunchConfig((DeviceSlot("cpu:0", "cpu:0"),), Path("models")),
    )
