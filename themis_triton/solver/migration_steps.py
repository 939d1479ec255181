"""The steps from what runs now to a plan: what starts, grows, is reloaded, shrinks and stops, in which order and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem


class StepKind(StrEnum):
    """A count change in place, a batching change (a reload beside the old instances), a cold start, a drain and stop."""

    GROW = "grow"
    SHRINK = "shrink"
    REBATCH = "rebatch"
    LAUNCH = "launch"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class MoveTimes:
    """Measured durations of the levers, in seconds. A model's instances start side by side and stop one after the other."""

    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    drain_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step on one server; `requires` names earlier steps by their index.

    `before` and `after` are (instances, batch) of `stage`. A launch or a stop concerns the whole server: `stage` is None, the pairs
    hold (all instances, 0), and `holding` is what a launched server comes with.
    `peak_memory_bytes` is what the server's instances take at most while the step runs: a reload holds old and new instances.
    """

    kind: StepKind
    server: str
    stage: str | None
    before: tuple[int, int]
    after: tuple[int, int]
    starts_s: float
    ends_s: float
    peak_memory_bytes: int
    requires: tuple[int, ...] = ()
    holding: ServerAssignment | None = None


def steps_to(
    problem: ChainProblem, times: MoveTimes, now: Sequence[ServerAssignment], plan: ChainPlan, *, room_first: bool = False
) -> tuple[Step, ...]:
    """The steps to one plan, make before break: launches and growth at once, then reloads server by server, then shrinking and stops.

    `room_first`: a server shrinks before it grows, because its device has no memory for both. Servers leave from the end of `now`.
    """
    return tuple(_Builder(problem, times, room_first=room_first).build(now, plan))


class _Builder:
    """Collects steps. `room_first`: what a server gives up goes before it takes more, for want of memory."""

    def __init__(self, problem: ChainProblem, times: MoveTimes, *, room_first: bool) -> None:
        self.problem, self.times, self.room_first = problem, times, room_first
        self.steps: list[Step] = []

    def build(self, now: Sequence[ServerAssignment], plan: ChainPlan) -> list[Step]:
        target = [(stage.instances, stage.batch) for stage in plan.stages]
        staying, leaving = now[: plan.servers], now[plan.servers :]
        for i in range(len(now), plan.servers):
            self._launch(f"new-{i + 1}", target)
        for held in staying:
            if self.room_first:
                self._shrink(held, target, 0.0, ())
            self._grow(held, target)
        self._rebatch(staying, target)
        made = tuple(range(len(self.steps)))
        ready = max((step.ends_s for step in self.steps), default=0.0)
        for held in staying if not self.room_first else ():
            self._shrink(held, target, ready, made)
        for held in leaving:
            self._retire(held, ready, made)
        return self.steps

    def _launch(self, name: str, target: list[tuple[int, int]]) -> None:
        counts, batches = zip(*target, strict=True)
        holding, total = ServerAssignment(name, counts, batches), (sum(counts), 0)
        ends, memory = self.times.server_launch_s + self.times.instance_init_s, memory_bytes(self.problem, counts)
        self.steps.append(Step(StepKind.LAUNCH, name, None, (0, 0), total, 0.0, ends, memory, holding=holding))

    def _grow(self, held: ServerAssignment, target: list[tuple[int, int]]) -> None:
        grown, starts, requires = self._grown(held, target), *self._after_shrinks(held)
        for s, (stage, (count, batch)) in enumerate(zip(self.problem.stages, target, strict=True)):
            if count > held.instances[s] and batch == held.batches[s]:
                before, after, ends = (held.instances[s], batch), (count, batch), starts + self.times.instance_init_s
                self.steps.append(Step(StepKind.GROW, held.name, stage.name, before, after, starts, ends, grown, requires))

    def _grown(self, held: ServerAssignment, target: list[tuple[int, int]]) -> int:
        """What the server takes at most, apart from reloads."""
        pairs = zip(held.instances, held.batches, target, strict=True)
        counts = [wanted if self.room_first and batch == after else max(c, wanted) for c, batch, (wanted, after) in pairs]
        return memory_bytes(self.problem, counts)

    def _after_shrinks(self, held: ServerAssignment) -> tuple[float, tuple[int, ...]]:
        shrinks = [i for i, step in enumerate(self.steps) if step.kind is StepKind.SHRINK and step.server == held.name]
        return max((self.steps[i].ends_s for i in shrinks), default=0.0), tuple(shrinks)

    def _rebatch(self, staying: Sequence[ServerAssignment], target: list[tuple[int, int]]) -> None:
        """One model on one server at a time, after what makes capacity: old and new instances exist together for a while."""
        starts = max((step.ends_s for step in self.steps), default=0.0)
        requires = tuple(range(len(self.steps)))
        for held in staying:
            grown = self._grown(held, target)
            for s, (stage, after) in enumerate(zip(self.problem.stages, target, strict=True)):
                if after[1] == held.batches[s]:
                    continue
                beside = min(held.instances[s], after[0]) * stage.instance_memory_bytes
                ends = starts + self.times.instance_init_s
                before = (held.instances[s], held.batches[s])
                self.steps.append(Step(StepKind.REBATCH, held.name, stage.name, before, after, starts, ends, grown + beside, requires))
                starts, requires = ends, (len(self.steps) - 1,)

    def _shrink(self, held: ServerAssignment, target: list[tuple[int, int]], starts: float, requires: tuple[int, ...]) -> None:
        memory = memory_bytes(self.problem, held.instances)
        for s, (stage, after) in enumerate(zip(self.problem.stages, target, strict=True)):
            gone = held.instances[s] - after[0]
            if gone > 0 and after[1] == held.batches[s]:
                ends, before = starts + gone * self.times.instance_stop_s, (held.instances[s], held.batches[s])
                self.steps.append(Step(StepKind.SHRINK, held.name, stage.name, before, after, starts, ends, memory, requires))

    def _retire(self, held: ServerAssignment, starts: float, requires: tuple[int, ...]) -> None:
        ends, memory = starts + self.times.drain_s, memory_bytes(self.problem, held.instances)
        self.steps.append(Step(StepKind.RETIRE, held.name, None, (sum(held.instances), 0), (0, 0), starts, ends, memory, requires))


def memory_bytes(problem: ChainProblem, instances: Sequence[int]) -> int:
    """What a server's instances take."""
    return sum(c * stage.instance_memory_bytes for stage, c in zip(problem.stages, instances, strict=True))
