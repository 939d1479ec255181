"""A growth under a standing backlog in five situations, on a real Triton and simulated: one model each in one server."""

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

from themis_triton.adapters.triton.model_control import TritonModelControl
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
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import PREROLL_S, SimOptions, build_simulation
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import triton_world

SERVICE_MS, PER_REQUEST_MS = 40.0, 28.0
"""Service time of one request, and of each further one of its batch."""
BETWEEN_S = 0.02
"""A batch that begins so soon after the end of the one before it ends on time: what a busy processor delays does not add up."""
START_S, CONTROL_S = 0.1, 0.01
"""Start of an instance's Python process on an idle machine, and a call's own time."""
TIMEOUT_S = 60.0
SLO_MS = 300.0
ANSWER_TIMEOUT_S = 0.5
"""Of the model control: calls stay open for longer than this."""

_MODEL = """
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(INIT_S)
        self.instance = np.array([[os.getpid(), time.monotonic_ns()]], dtype=np.int64)
        self.end_s = time.monotonic()

    def execute(self, requests):
        now_s = time.monotonic()
        follows = now_s - self.end_s < BETWEEN_S
        self.end_s = (self.end_s if follows else now_s) + (FIRST_MS + REQUEST_MS * len(requests)) / 1000.0
        time.sleep(max(0.0, self.end_s - now_s))
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("INSTANCE", self.instance)]) for _ in requests]
"""
_CONFIG = """
backend: "python"
input [{ name: "INPUT", data_type: TYPE_INT64, dims: [1] }]
output [{ name: "INSTANCE", data_type: TYPE_INT64, dims: [2] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One situation: regular arrivals at a rate, and the counts asked for one after the other, each once the last call has returned.

    `rises`: the time (s) from which the rate is another one, and that rate. `min_answering`: instances that answer at least.
    """

    name: str
    rate_rps: float
    counts: tuple[int, ...]
    batching: bool = False
    init_s: float = 0.3
    asked_at_s: float = 1.5
    load_s: float = 6.0
    rises: tuple[float, float] | None = None
    max_instances: int = 4
    min_answering: int = 2

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
        at_s, rate_rps = self.rises or (self.load_s, self.rate_rps)
        before = [number / self.rate_rps for number in range(int(at_s * self.rate_rps))]
        return before + [at_s + number / rate_rps for number in range(int((self.load_s - at_s) * rate_rps))]


CASES = (
    Case("steps-40", 40.0, (2, 3)),
    Case("steps-70", 70.0, (2, 4)),
    Case("at-once-70", 70.0, (4,), min_answering=4),
    Case("steps-batching-80", 80.0, (2, 3), batching=True),
    Case("at-once-batching-80", 80.0, (4,), batching=True, min_answering=4),
)
HARDEST = Case("sidecar-70", 70.0, (), min_answering=4)
"""Of the five the one in which a growth in steps makes requests wait longest. The sidecar asks by itself."""
OUTGROWN = Case("outgrown", 60.0, (), load_s=8.0, rises=(1.5, 190.0), max_instances=8, min_answering=7)
"""On two servers, for the sidecar: the rate rises once more when the first growth has been asked for."""
LONG_CASES = tuple(replace(case, init_s=0.5, asked_at_s=4.0, load_s=14.0 if case.batching else 16.0) for case in CASES)
"""As first measured: with a longer load and a later growth."""


@dataclass(slots=True)
class Result:
    """One run: the first answer of each instance and the return of each call (s from the load's start), and the longest latency (s).

    `initialised_s`: the end of each answering instance's initialisation, by its own clock (s from the load's start).
    """

    initialised_s: list[float] = field(default_factory=list)
    first_answer_s: list[float] = field(default_factory=list)
    returned_s: list[float] = field(default_factory=list)
    longest_s: float = 0.0
    failed: int = 0


def write_repository(directory: Path, cases: tuple[Case, ...] = CASES) -> Path:
    """A model repository with one model a case."""
    for case in cases:
        folder = directory / case.name
        (folder / "1").mkdir(parents=True)
        constants = {"INIT_S": case.init_s, "FIRST_MS": SERVICE_MS - PER_REQUEST_MS, "REQUEST_MS": PER_REQUEST_MS, "BETWEEN_S": BETWEEN_S}
        (folder / "1" / "model.py").write_text("".join(f"{name} = {value}\n" for name, value in constants.items()) + _MODEL)
        # Written by the server's first start, it would make the first change a reload.
        py_compile.compile(str(folder / "1" / "model.py"), doraise=True)
        (folder / "config.pbtxt").write_text(
            f'name: "{case.name}"\nmax_batch_size: {case.max_batch}\n{_CONFIG}' + ("dynamic_batching { }\n" if case.batching else "")
        )
    return directory


async def run_cases(grpc_address: str, repository: Path | None, cases: tuple[Case, ...] = CASES, apart_s: float = 1.0) -> dict[str, Result]:
    """Run the cases side by side, each beginning a moment after the one before it. Without a repository nothing is asked to grow."""
    start_s = time.monotonic() + 0.2
    control = TritonModelControl(ANSWER_TIMEOUT_S)
    try:
        async with triton.InferenceServerClient(grpc_address) as client:
            growth = None if repository is None else _Growth(control, _server(grpc_address, repository))
            runs = [_run(client, growth, case, start_s + apart_s * number) for number, case in enumerate(cases)]
            return dict(zip([case.name for case in cases], await asyncio.gather(*runs), strict=True))
    finally:
        await control.close()


@dataclass(frozen=True, slots=True)
class _Growth:
    """Whereby a case's instances are added."""

    control: TritonModelControl
    server: Server


def _server(grpc_address: str, repository: Path) -> Server:
    host, _, port = grpc_address.rpartition(":")
    address = Address(host, int(port))
    return Server("by-hand", "cpu:0", address, address, address, Phase.SERVING, launched=False, model_repository=str(repository))


async def _run(client: Any, growth: _Growth | None, case: Case, start_s: float) -> Result:
    result = Result()
    seen: dict[tuple[int, float], float] = {}
    async with asyncio.TaskGroup() as group:
        if growth is not None:
            group.create_task(_grow(growth, case, start_s, result))
        for at_s in case.arrival_s:
            group.create_task(_ask(client, case, start_s, at_s, result, seen))
    result.first_answer_s = sorted(seen.values())
    result.initialised_s = sorted(initialised_s - start_s for _, initialised_s in seen)
    return result


async def _grow(growth: _Growth, case: Case, start_s: float, result: Result) -> None:
    await _until(start_s + case.asked_at_s)
    for count in case.counts:
        await growth.control.change(growth.server, case.name, ModelState(count, case.max_batch, 0))
        result.returned_s.append(time.monotonic() - start_s)


async def _ask(client: Any, case: Case, start_s: float, at_s: float, result: Result, seen: dict[tuple[int, float], float]) -> None:
    await _until(start_s + at_s)
    tensor = triton.InferInput("INPUT", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.int64))
    try:
        answer = await client.infer(case.name, [tensor], client_timeout=TIMEOUT_S)
    except triton.InferenceServerException:
        result.failed += 1
        return
    now_s = time.monotonic() - start_s
    pid, initialised_ns = answer.as_numpy("INSTANCE")[0].tolist()
    seen.setdefault((pid, initialised_ns / 1e9), now_s)
    result.longest_s = max(result.longest_s, now_s - at_s)


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))


def simulate_case(case: Case, grow_s: float | None = None) -> Result:
    """The same situation in the simulator. `grow_s`: a growth's initialisation as measured; None for an idle machine's."""

    async def main() -> Result:
        config = _config(case)
        arrivals = np.array(case.arrival_s)
        world = replace(triton_world(), control_s=CONTROL_S)
        if grow_s is not None:
            world = replace(world, grow_s=grow_s - CONTROL_S, init_work_s=0.0)
        simulation = build_simulation(config, {case.name: arrivals}, world, 0)
        cluster = Cluster(config, world, simulation, 0)
        cluster.start("s", 0, {case.name: ModelState(1, case.max_batch)})
        cluster.hold("s")
        simulation.route(0, (0,))
        await asyncio.sleep(PREROLL_S + case.asked_at_s)
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
        return Result([], [first_s, *added], returned_s, float((engine.ended_s - engine.arrival_s).max()), int(engine.failed.sum()))

    return run_virtual(main())


def simulate_sidecar(case: Case, phase_s: float) -> float:
    """The longest latency (s) of the same load in the simulator under policy themis, with a load that starts `phase_s` after a tick."""
    options = SimOptions(models={case.name: ModelState(1, case.max_batch)}, world=replace(triton_world(), control_s=CONTROL_S))
    arrivals = {case.name: np.array(case.arrival_s) + phase_s}
    (run,) = simulate(_config(case), arrivals, case.load_s + TIMEOUT_S, options).pipelines
    return float(run.latency_ms.max()) / 1000.0


def _config(case: Case) -> ThemisConfig:
    """Settings with the case's model alone, which no other instance slows."""
    batches = tuple(range(1, case.max_batch + 1))
    counts = tuple(range(1, case.max_instances + 1))
    rows = tuple((SERVICE_MS + PER_REQUEST_MS * (batch - 1),) * len(counts) for batch in batches)
    profile = ModelProfile(LatencyTable(batches, counts, rows), instance_init_s=START_S + case.init_s)
    address = Address("127.0.0.1", 1)
    return ThemisConfig(
        state_directory=Path("state"),
        models={case.name: ModelConfig(case.name, profile, max_instances=case.max_instances, max_batch=case.max_batch)},
        pipelines=(PipelineConfig(case.name, (case.name,), slo_ms=SLO_MS),),
        servers=(),
        envoy=EnvoyConfig(address, address, address, Path("envoy")),
        launch=LocalLaunchConfig((DeviceSlot("cpu:0", "cpu:0"),), Path("models")),
    )
