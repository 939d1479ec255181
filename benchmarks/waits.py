"""The default queueing model against the request-level simulator: is the predicted p99 a bound, and how loose is it?

Servers are as behind our Envoy: a request goes to the emptiest one, batches conserve work, and one that starts slows those that run
on its device. Run from the repository root: `python benchmarks/waits.py` (about a minute). Writes results/waits.json and waits.png.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from common import RESULTS, versions, write_result

from tests.property.solver_problems import random_graph
from themis_triton.core.fleet import ModelState
from themis_triton.core.graph import Graph, is_chain, waits
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.world import SimWorld
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.solve import evaluate
from themis_triton.solver.surface import contention_surface

REQUESTS, WARM_UP, SEED = 20_000, 2_000, 20_260
DRAIN_S = 600.0
SAMPLING = 0.995  # the simulated p99 is itself a sample


@dataclass(frozen=True)
class State:
    """One steady state. `load` is the rate over the capacity with all instances on the device busy."""

    family: str
    servers: int
    instances: tuple[int, ...]
    batches: tuple[int, ...]
    rate_rps: float
    load: float
    simulated_p99_ms: float
    predicted_p99_ms: float

    @property
    def ratio(self) -> float:
        """Predicted over simulated p99."""
        return self.predicted_p99_ms / self.simulated_p99_ms


def random_stages(rng: np.random.Generator, least: int = 1, most: int = 3) -> tuple[StageProblem, ...]:
    scale = (8.0, 4.0) if rng.random() < 0.3 else (4.0, 2.0, 1.0, 0.2)
    return tuple(
        StageProblem(
            f"stage-{s}",
            contention_surface(
                rng.choice(scale) * rng.uniform(0.3, 1.5), rng.uniform(0.2, 10), rng.uniform(0, 5), rng.uniform(1, 30), 16, 24
            ),
            max_batch=16,
        )
        for s in range(int(rng.integers(least, most + 1)))
    )


def video_stages() -> tuple[StageProblem, ...]:
    return (
        StageProblem("video-detector", contention_surface(4, 8, 4, 20, 8, 16)),
        StageProblem("video-classifier", contention_surface(2, 4, 2, 10, 8, 16)),
    )


def simulated_p99_ms(problem: ChainProblem, servers: int, counts: list[int], batches: list[int], rate_rps: float, seed: int) -> float:
    """End to end, with Poisson arrivals and no time on the wire."""
    stages, largest, total = range(len(counts)), max(batches), sum(counts)
    latency = np.stack([stage.surface.extended(largest, total)[:largest, :total] for stage in problem.stages])
    calls = tuple(stage.demand_ratio for stage in problem.stages)
    in_turn = tuple(stage.in_turn > 1.0 for stage in problem.stages)
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_rps, REQUESTS))
    index = {stage.name: s for s, stage in enumerate(problem.stages)}
    follows = None if problem.graph is None else tuple((index[earlier], index[later]) for earlier, later in waits(problem.graph))
    layout = Layout(
        latency,
        (tuple(stages),),
        tuple(range(servers)),
        total,
        follows=(follows,),
        per_request=(calls,),
        sequential=(in_turn,),
        max_per_request=(tuple(stage.most_calls for stage in problem.stages),),
    )
    simulation = Simulation(layout, SimWorld(hop_s=0.0), arrival_s, np.zeros(REQUESTS, dtype=np.int64), seed)
    for model in stages:
        for server in range(servers):
            simulation.configure(server, model, ModelState(counts[model], batches[model]))
        simulation.route(model, tuple(range(servers)))
    simulation.advance(float(arrival_s[-1]) + DRAIN_S)
    engine = simulation.engine
    return float(1000.0 * np.percentile((engine.ended_s - engine.arrival_s)[WARM_UP:], 99))


def measure(
    family: str,
    stages: tuple[StageProblem, ...],
    servers: int,
    counts: list[int],
    batches: list[int],
    load: float,
    seed: int,
    graph: Graph | None = None,
) -> State:
    problem = ChainProblem(stages, 1e9, 1.0, graph=graph)
    rate = load * evaluate(problem, servers, counts, batches).capacity_rps
    simulated = simulated_p99_ms(problem, servers, counts, batches, rate, seed)
    predicted = evaluate(problem, servers, counts, batches, rate_rps=rate).predicted_p99_ms
    return State(family, servers, tuple(counts), tuple(batches), round(rate, 2), round(load, 3), round(simulated, 1), round(predicted, 1))


def random_states(count: int) -> list[State]:
    rng = np.random.default_rng(SEED)
    states = []
    for seed in range(count):
        stages = random_stages(rng)
        counts = [int(c) for c in rng.integers(1, 7, len(stages))]
        batches = [int(b) for b in rng.choice([1, 2, 4, 8, 16], len(stages))]
        states.append(measure("random", stages, int(rng.integers(1, 5)), counts, batches, float(rng.uniform(0.02, 0.95)), seed))
    return states


def call_states(count: int, *, turns: bool) -> list[State]:
    """A first stage, and one that gets 2 to 8 calls of each request, at once or in turn."""
    rng = np.random.default_rng(SEED + turns)
    states = []
    for seed in range(count):
        calls = float(rng.choice([2, 3, 4, 8]))
        first, second = (random_stages(rng)[0] for _ in range(2))
        stages = (first, replace(second, name="called", demand_ratio=calls, in_turn=calls if turns else 1.0))
        counts = [int(c) for c in rng.integers(1, 7, 2)]
        batches = [int(b) for b in rng.choice([1, 2, 4, 8, 16], 2)]
        load = float(rng.uniform(0.02, 0.95))
        states.append(measure("in turn" if turns else "at once", stages, int(rng.integers(1, 5)), counts, batches, load, seed))
    return states


def spread_states(count: int, *, covered: bool = True) -> list[State]:
    """A second stage that gets 1 to 12 calls of a request at once, about as often each, or 12 of few requests. `covered`: plans know."""
    rng = np.random.default_rng(SEED + 2)
    states = []
    for seed in range(count):
        calls = float(rng.choice([2.0, 3.0, 6.5]))
        first, second = (random_stages(rng)[0] for _ in range(2))
        stages = (first, replace(second, name="called", demand_ratio=calls, max_calls=12.0))
        counts = [int(c) for c in rng.integers(1, 7, 2)]
        batches = [int(b) for b in rng.choice([1, 2, 4, 8, 16], 2)]
        load, servers = float(rng.uniform(0.02, 0.95)), int(rng.integers(1, 5))
        state = measure("spread", stages, servers, counts, batches, load, seed)
        if not covered:
            blind = ChainProblem((first, replace(stages[1], max_calls=0.0)), 1e9, 1.0)
            predicted = evaluate(blind, servers, counts, batches, rate_rps=state.rate_rps).predicted_p99_ms
            state = replace(state, family="spread, by the mean", predicted_p99_ms=round(predicted, 1))
        states.append(state)
    return states


def graph_states(count: int) -> list[State]:
    """Stages of which some run side by side."""
    rng, states = np.random.default_rng(SEED + 1), list[State]()
    while len(states) < count:
        stages = random_stages(rng, 2, 4)
        graph = random_graph(rng, [stage.name for stage in stages])
        if not is_chain(graph):
            counts, batches = rng.integers(1, 7, len(stages)).tolist(), rng.choice([1, 2, 4, 8, 16], len(stages)).tolist()
            load, servers = float(rng.uniform(0.02, 0.95)), int(rng.integers(1, 5))
            states.append(measure("graphs", stages, servers, counts, batches, load, len(states), graph))
    return states


def video_states() -> list[State]:
    return [
        measure("video", video_stages(), servers, counts, [batch, batch], load, 7)
        for servers in (1, 2, 4)
        for counts in ([1, 1], [2, 1], [3, 2], [4, 2])
        for batch in (2, 4, 8)
        for load in (0.2, 0.5, 0.8)
    ]


def summary(states: list[State]) -> dict[str, Any]:
    ratios = np.array([state.ratio for state in states])
    return {
        "states": len(states),
        "share_bounded": round(float(np.mean(ratios >= SAMPLING)), 3),
        "median_overestimate": round(float(np.median(ratios) - 1), 3),
        "p10_ratio": round(float(np.percentile(ratios, 10)), 3),
        "p90_ratio": round(float(np.percentile(ratios, 90)), 3),
        "least_ratio": round(float(ratios.min()), 3),
    }


def draw(states: list[State]) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only the picture needs it

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for family, colour in (("random", "tab:blue"), ("video", "tab:orange"), ("graphs", "tab:green")):
        chosen = [state for state in states if state.family == family]
        axes[0].loglog(
            [s.simulated_p99_ms for s in chosen], [s.predicted_p99_ms for s in chosen], ".", color=colour, label=family, alpha=0.6
        )
        axes[1].plot([s.load for s in chosen], [s.ratio for s in chosen], ".", color=colour, label=family, alpha=0.6)
    span = axes[0].get_xlim()
    axes[0].plot(span, span, color="black", linewidth=0.8)
    axes[1].axhline(1, color="black", linewidth=0.8)
    axes[0].set(xlabel="simulated p99 (ms)", ylabel="predicted p99 (ms)")
    axes[1].set(xlabel="rate / capacity with all instances busy", ylabel="predicted / simulated p99", ylim=(0.4, 3))
    axes[0].legend(frameon=False)
    figure.savefig(RESULTS / "waits.png", dpi=110)


def main() -> None:
    states = random_states(600) + video_states() + call_states(300, turns=False) + call_states(300, turns=True) + graph_states(400)
    states += spread_states(300) + spread_states(300, covered=False)
    names = ("random", "video", "at once", "in turn", "graphs", "spread", "spread, by the mean")
    families = {family: summary([s for s in states if s.family == family]) for family in names}
    by_load = {
        f"{low:.1f}..{low + 0.2:.1f}": summary([s for s in states if s.family == "random" and low <= s.load < low + 0.2])
        for low in (0.0, 0.2, 0.4, 0.6, 0.8)
    }
    graphs_by_load = {
        f"{low:.1f}..{low + 0.2:.1f}": summary([s for s in states if s.family == "graphs" and low <= s.load < low + 0.2])
        for low in (0.0, 0.2, 0.4, 0.6, 0.8)
    }
    by_servers = {str(n): summary([s for s in states if s.family == "random" and s.servers == n]) for n in (1, 2, 3, 4)}
    draw(states)
    splits = {"random_by_load": by_load, "graphs_by_load": graphs_by_load, "random_by_servers": by_servers}
    result = {"versions": versions("numpy", "numba"), "requests": REQUESTS, "families": families, **splits}
    path = write_result("waits", {**result, "states": [asdict(state) for state in states]})
    for family, numbers in families.items():
        print(family, numbers)
    print(path)


if __name__ == "__main__":
    main()
