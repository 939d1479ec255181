"""How fast the simulator is on one core: requests/s inside the compiled engine, and whole runs with the tick and its solver."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from common import versions, write_result

from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import PolicyName
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.world import SimWorld, paper_world, triton_world
from themis_triton.solver.surface import FloatArray, contention_surface, paper_surface

REQUESTS = 1_000_000
ROUNDS = 3


def main() -> None:
    """Measure in processor time, so that other work on the machine does not count; write `results/simulator.json`."""
    detector, classifier = (contention_surface(*form, 8, 32).latency_ms for form in ((4, 8, 4, 20), (2, 4, 2, 10)))
    cores = [paper_surface(39.909, 7.784, 1.833, 0.451).latency_ms, paper_surface(28.084, 2.627, 6.807, 0.459).latency_ms]
    measured = {
        "triton world, one stage, 1 server × 4": engine_rps(np.array([detector]), triton_world(), 1, ModelState(4, 8), 60.0),
        "triton world, video, 4 servers × (5 + 5)": engine_rps(
            np.array([detector, classifier]), triton_world(), 4, ModelState(5, 8), 200.0
        ),
        "triton world, video, 1 server on 4 devices × (5 + 5)": engine_rps(
            np.array([detector, classifier]), triton_world(), 1, ModelState(20, 8), 200.0, devices=4
        ),
        "paper's world, video, 16 servers of 2 cores": engine_rps(np.array(cores), paper_world(), 16, ModelState(2, 4), 400.0),
    }
    whole = {policy.value: whole_run(policy) for policy in PolicyName}
    for name, figures in measured.items():
        print(f"{name}: {figures['requests_per_s'] / 1e6:.2f}M requests/s, p99 {figures['p99_ms']:.0f} ms")
    for policy, seconds in whole.items():
        print(f"whole run of 660 s, {policy}: {seconds['cpu_s']:.1f} s")
    write_result("simulator", {"engine": measured, "runs_of_660_s": whole, "versions": versions("numba", "numpy")})


def engine_rps(
    surfaces: FloatArray, world: SimWorld, servers: int, state: ModelState, rate_rps: float, devices: int = 1
) -> dict[str, float]:
    """The best of some rounds (the first compiles). Instances of each server are divided evenly among so many devices of its own."""
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(1.0 / rate_rps, REQUESTS))
    best_s, ended_s, events = math.inf, arrival_s, 0
    layout = Layout(surfaces, (tuple(range(surfaces.shape[0])),), tuple(range(servers * devices)), 32)
    for _ in range(ROUNDS):
        simulation = Simulation(layout, world, arrival_s, np.zeros(REQUESTS, dtype=np.int64), 1)
        for row in range(servers, servers * devices):
            simulation.attach(row % servers, row)
        for model in range(surfaces.shape[0]):
            for server in range(servers):
                simulation.configure(server, model, state, [state.instances // devices] * devices)
            simulation.route(model, tuple(range(servers)))
        start_s = time.process_time()
        simulation.advance(math.inf)
        best_s = min(best_s, time.process_time() - start_s)
        ended_s, events = simulation.engine.ended_s, simulation.events
    latency_ms = 1000.0 * (ended_s - arrival_s)
    return {
        "requests_per_s": REQUESTS / best_s,
        "events_per_request": events / REQUESTS,
        "rate_rps": rate_rps,
        "p50_ms": float(np.percentile(latency_ms, 50)),
        "p99_ms": float(np.percentile(latency_ms, 99)),
    }


def whole_run(policy: PolicyName) -> dict[str, float]:
    """The shipped settings' video pipeline under a surge of 660 s."""
    config = video(load_settings(shipped("config") / "themis.yaml"))
    times_s = arrivals(load_trace(TraceOptions("surge", duration_s=660)), 1)
    simulate(config, {"video": times_s[times_s < 10]}, 10, SimOptions(policy=policy))
    start_s = time.process_time()
    result = simulate(config, {"video": times_s}, 660, SimOptions(policy=policy))
    return {"cpu_s": time.process_time() - start_s, "requests": result.requests, "ticks": len(result.ticks)}


def video(config: ThemisConfig) -> ThemisConfig:
    """The settings with just that pipeline and its models."""
    pipeline = next(p for p in config.pipelines if p.name == "video")
    return replace(config, pipelines=(pipeline,), models={name: config.models[name] for name in pipeline.stages})


if __name__ == "__main__":
    main()
