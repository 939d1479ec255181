"""What the slow loop wants, and under which circumstances: a target holds for a while, and many pipelines plan in turn."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import ChainPlan

PIPELINES_A_TICK, PLACES_A_TICK = 5, 40
"""Slow loops of a tick, and their pipelines' places; more than these plan in turn, a surge or a change of servers at once."""
RISE_FACTOR = 1.25
"""A demand that exceeds the planned one by this factor is planned at once."""
HOLDS_S, SLIGHT_RISE_FACTOR = 0.9, 1.02
"""A target holds for so long while demands rise no more than this: it is about launches, which take seconds. Less than a round of ticks."""


@dataclass(frozen=True, slots=True)
class SlowTarget:
    """The slow loop's target: places a group, the plan, if any holds, and the migration to it where one was solved.

    `reserve`: the places that a surge of `burst_headroom_factor` times the rate would take. `rises`: the ready places do not carry the
    demand. `lasting`: the places a group without those that only wait for a recurring rise.
    """

    desired: tuple[int, ...]
    plan: ChainPlan | None
    migration: Migration | None
    reserve: tuple[int, ...]
    rises: bool
    lasting: tuple[int, ...]

    def runner_up(self, unit: str) -> str:
        """The plan that lost, and why, in words; empty without one."""
        if self.plan is None or self.plan.runner_up is None:
            return ""
        return self.plan.runner_up.sentence(self.plan.cost, unit)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a target was planned for: what must be equal, and demands in requests/s."""

    equal: Hashable
    demands_rps: tuple[float, ...]

    def hardly_differ_from(self, planned: Circumstances, factor: float = RISE_FACTOR) -> bool:
        """Whether what was planned for the others will do: no demand exceeds theirs by more than the factor."""
        demands = zip(self.demands_rps, planned.demands_rps, strict=True)
        return self.equal == planned.equal and all(rps <= factor * before for rps, before in demands)


@dataclass(frozen=True, slots=True)
class Planned:
    """A target, when it was planned and under which circumstances."""

    at_s: float
    since: Circumstances
    target: SlowTarget

    def holds(self, at_s: float, now: Circumstances, *, in_turn: bool) -> bool:
        """Whether it will do: `in_turn` for a short time, and only while no demand rises."""
        if 0.0 <= at_s - self.at_s < HOLDS_S and now.hardly_differ_from(self.since, SLIGHT_RISE_FACTOR):
            return True
        return not in_turn and now.hardly_differ_from(self.since)


def is_in_turn(number: int, pipelines: int, places: int, ticks: int) -> bool:
    """Whether a pipeline plans in this tick; each does so once in a round of ticks. `places`: those of all pipelines."""
    rounds = max(1, -(-pipelines // PIPELINES_A_TICK), -(-places // PLACES_A_TICK))
    return (ticks + number) % rounds == 0
