"""Plans for a model that calls another by itself (BLS), against a simulation of calls inside calls: do plans hold, is the p99 a bound?

A caller's instance answers the requests of its batch one after the other: some work of its own, then a call that it waits for. The callee's
instances batch what waits, and contend for the device; a caller that waits does not. Run from the repository root:
`python benchmarks/callers.py` (about a minute). Writes results/callers.json.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from common import write_result

from tests.unit.samples import config, model, table
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.graph import Calls
from themis_triton.decide.demand import Demand
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.solver.solve import evaluate

CALLER, INNER = "caller", "inner"
SURFACE = table(2.0, 4.0, 2.0, 10.0)
REQUESTS, WARM_UP, BATCH, STATES = 6000, 500, 8, 300
OWN_MS, SLOS_MS = (1.0, 2.0, 10.0, 30.0), (80.0, 120.0, 200.0, 300.0)


def inner_ms(batch: int, busy: int) -> float:
    """The callee's service time."""
    return SURFACE.latency_ms[batch - 1][busy - 1]


@dataclass
class Nested:
    """One server with so many instances of caller and callee; times in ms."""

    callers: int
    inners: int
    own_ms: float
    now: float = 0.0
    waiting: list[float] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    working: list[tuple[float, int]] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    running: list[tuple[float, list[int]]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def run(self, rate_rps: float, seed: int) -> float:
        """The p99 of Poisson arrivals."""
        rng = random.Random(seed)
        arrivals = np.cumsum([rng.expovariate(rate_rps / 1000.0) for _ in range(REQUESTS)]).tolist()
        self.idle, arrived = list(range(self.callers)), 0
        while len(self.latencies) < REQUESTS:
            next_ms = arrivals[arrived] if arrived < REQUESTS else math.inf
            own_ms = self.working[0][0] if self.working else math.inf
            ends = [self.now + left * inner_ms(len(batch), len(self.running)) for left, batch in self.running]
            inner = min(range(len(ends)), key=ends.__getitem__, default=None)
            until = min(next_ms, own_ms, math.inf if inner is None else ends[inner])
            self._progress(until)
            if until == next_ms:
                self.waiting.append(until)
                arrived += 1
            elif until == own_ms:
                self.queue.append(heapq.heappop(self.working)[1])
            elif inner is not None:
                self._answer(self.running.pop(inner)[1])
            self._start()
        return float(np.percentile(self.latencies[WARM_UP:], 99))

    def _progress(self, until: float) -> None:
        busy, passed = len(self.running), until - self.now
        self.running = [(left - passed / inner_ms(len(batch), busy), batch) for left, batch in self.running]
        self.now = until

    def _answer(self, callers: list[int]) -> None:
        for caller in callers:
            self.left[caller] -= 1
            if self.left[caller]:
                heapq.heappush(self.working, (self.now + self.own_ms, caller))
            else:
                self.latencies += [self.now - arrival for arrival in self.batches.pop(caller)]
                self.idle.append(caller)

    def _start(self) -> None:
        while len(self.running) < self.inners and self.queue:
            batch, self.queue = self.queue[:BATCH], self.queue[BATCH:]
            self.running.append((1.0, batch))
        while self.idle and self.waiting:
            caller, self.batches[caller] = self.idle[-1], self.waiting[:BATCH]
            self.idle.pop()
            self.left[caller], self.waiting = len(self.batches[caller]), self.waiting[BATCH:]
            heapq.heappush(self.working, (self.now + self.own_ms, caller))


def settings(own_ms: float, slo_ms: float) -> ThemisConfig:
    """The pair, the caller with the profile that a measurement with an idle callee gives."""
    rows = tuple(tuple(b * (own_ms + ms) for ms in SURFACE.latency_ms[0]) for b in SURFACE.batches)
    models = {CALLER: model(CALLER, replace(SURFACE, latency_ms=rows)), INNER: model(INNER, SURFACE)}
    pipeline = PipelineConfig("bls", (CALLER, INNER), slo_ms, entry=CALLER, graph=Calls(CALLER, INNER))
    return replace(config(), models=models, pipelines=(pipeline,), callees={CALLER: (INNER,)})


def query(rate_rps: float) -> PlanQuery:
    return PlanQuery("bls", Demand(rate_rps, 0.0, 1.0, 0.0), None)


def planned() -> dict[str, Any]:
    """Plans of one server for random rates and SLOs: how many of those that promise the SLO hold it."""
    rng, rows = random.Random(3), list[tuple[float, int]]()
    for _ in range(STATES):
        own_ms, slo_ms, rate_rps = rng.choice(OWN_MS), rng.choice(SLOS_MS), rng.uniform(5.0, 120.0)
        plan = Planner(build_rules(settings(own_ms, slo_ms))).vertical(query(rate_rps), (1,)).plan
        if plan.feasible:
            callers, inners = (stage.instances for stage in plan.stages)
            rows.append((Nested(callers, inners, own_ms).run(rate_rps, rng.randrange(10**9)) / slo_ms, callers + inners))
    late = [ratio for ratio, _ in rows if ratio > 1.0]
    return {
        "plans": len(rows),
        "held": round(1.0 - len(late) / len(rows), 4),
        "worst_over_slo": round(max(late, default=1.0), 3),
        "mean_instances": round(float(np.mean([count for _, count in rows])), 2),
    }


def states() -> dict[str, Any]:
    """Random counts and rates below what they are said to carry: predicted over simulated p99."""
    rng, ratios = random.Random(1), list[float]()
    while len(ratios) < STATES:
        own_ms, counts = rng.choice(OWN_MS), (rng.randint(1, 8), rng.randint(1, 8))
        planner = Planner(build_rules(settings(own_ms, 2000.0)))
        rate_rps = planner.carried(query(0.0), (1,), counts) * rng.uniform(0.1, 0.95)
        problem = replace(planner.problem_with_counts(query(0.0), counts), demand_rps=rate_rps)
        predicted_ms = evaluate(problem, 1, counts, (BATCH, BATCH)).predicted_p99_ms
        ratios.append(predicted_ms / Nested(*counts, own_ms).run(rate_rps, rng.randrange(10**9)))
    return {
        "states": len(ratios),
        "bounded": round(float(np.mean(np.array(ratios) >= 1.0)), 4),
        "median_ratio": round(float(np.median(ratios)), 3),
        "least_ratio": round(min(ratios), 3),
    }


def main() -> None:
    """Both comparisons."""
    print(write_result("callers", {"plans": planned(), "predictions": states()}))


if __name__ == "__main__":
    main()
