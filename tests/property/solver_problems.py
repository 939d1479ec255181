"""Random problems, small enough that every configuration can be tried."""

from __future__ import annotations

import numpy as np

from themis_triton.core.graph import Calls, Graph, parallel, series
from themis_triton.core.policy import QueueingModel
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.surface import Surface

QUEUEING = tuple(QueueingModel)


def random_surface(rng: np.random.Generator, batches: int, busy: int) -> Surface:
    """Smooth, or noise without any order in batch size or busy instances."""
    b, k = np.arange(1, batches + 1)[:, None], np.arange(1, busy + 1)[None, :]
    if rng.random() < 0.4:
        return Surface(rng.uniform(1, 80, (batches, busy)))
    values = rng.uniform(0, 6) * b * k + rng.uniform(0, 10) * b + rng.uniform(0, 6) * k + rng.uniform(1, 30)
    return Surface(np.round(values) if rng.random() < 0.5 else values)


def random_stage(rng: np.random.Generator, name: str, widest: int) -> StageProblem:
    low = int(rng.integers(1, 3)) if rng.random() < 0.2 else 1
    maximum, largest = low + int(rng.integers(0, widest)), int(rng.integers(1, widest + 2))
    whole = rng.random() < 0.6
    means = random_surface(rng, largest, int(rng.integers(1, 7))) if rng.random() < 0.3 else None
    ratio = float(rng.choice([1.0, 1.0, 1.0, 0.3, 2.5, 4.0, 0.0]))
    return StageProblem(
        name,
        random_surface(rng, max(1, largest - int(rng.random() < 0.1)), int(rng.integers(1, 7))),
        low,
        maximum,
        largest,
        server_price=float(rng.integers(0, 12)) if whole else float(rng.uniform(0, 12)),
        instance_price=1.0 if rng.random() < 0.4 else (float(rng.integers(0, 4)) if whole else float(rng.uniform(0, 4))),
        instance_memory_bytes=int(rng.integers(0, 4)),
        max_queue_delay_ms=float(rng.choice([0.0, 0.0, 5.0, 40.0])),
        demand_ratio=ratio,
        in_turn=max(1.0, ratio) if rng.random() < 0.3 else 1.0,
        mean_surface=means,
        max_calls=float(rng.choice([0.0, 0.0, 0.0, 2.0, 6.0])),
    )


def random_graph(rng: np.random.Generator, names: list[str], *, callers: float = 0.0) -> Graph:
    """Any series-parallel graph of these stages, some of which call what follows them with this probability."""
    if len(names) == 1:
        return names[0]
    if callers > 0.0 and rng.random() < callers:
        return Calls(names[0], random_graph(rng, names[1:], callers=callers))
    cuts = sorted(rng.choice(np.arange(1, len(names)), int(rng.integers(1, len(names))), replace=False).tolist())
    parts = tuple(random_graph(rng, names[low:high], callers=callers) for low, high in zip([0, *cuts], [*cuts, len(names)], strict=True))
    return series(parts) if rng.random() < 0.5 else parallel(parts)


def random_problem(rng: np.random.Generator, *, most_stages: int = 4, max_servers_by_group: int = 3, graphs: float = 0.3) -> ChainProblem:
    """With this share of graphs, of their stages in any order; the others are chains."""
    count = int(rng.integers(1, most_stages + 1))
    widest = (4, 3, 2, 1)[count - 1] + int(rng.random() < 0.3)
    separate = rng.random() < 0.5
    servers = int(rng.integers(1, max_servers_by_group + 1)) + (count - 1 if separate else 0)
    names = [f"stage-{s}" for s in range(count)]
    return ChainProblem(
        tuple(random_stage(rng, name, widest) for name in names),
        slo_ms=float(rng.choice([rng.uniform(5, 120) * count, 40.0 * count, 1e4])),
        demand_rps=float(
            rng.choice([0.0, rng.uniform(0, 60), rng.integers(1, 200), rng.uniform(0, 2000), 1e7], p=[0.08, 0.4, 0.3, 0.2, 0.02])
        ),
        percentile=float(rng.choice([50.0, 95.0, 99.0, 99.9])),
        queueing=QUEUEING[int(rng.integers(len(QUEUEING)))],
        placement=Placement.SEPARATE if separate else Placement.COLOCATED,
        throughput=ThroughputRule.CORES if rng.random() < 0.4 else ThroughputRule.INSTANCES,
        max_servers=servers,
        min_servers=2 if servers >= 2 * count and rng.random() < 0.2 else 1,
        device_memory_bytes=None if rng.random() < 0.6 else int(rng.integers(0, 12)),
        headroom_sigmas=float(rng.choice([0.0, 1.0, 2.0])),
        headroom_rps=float(rng.choice([0.0, 0.0, 7.5])),
        dispersion=float(rng.choice([1.0, 1.0, 3.0])),
        busy_elsewhere=int(rng.choice([0, 0, 2])),
        paper_rounding=bool(rng.random() < 0.2),
        other_rps=tuple(float(rng.choice([0.0, 3.0, rng.uniform(0, 60)])) for _ in range(count)) if rng.random() < 0.4 else (),
        graph=random_graph(rng, rng.permutation(names).tolist(), callers=0.25) if rng.random() < graphs else None,
    )
