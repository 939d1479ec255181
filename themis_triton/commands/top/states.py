"""The states of pipelines and servers in words: no state is told by a colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from themis_triton.core.fleet import Phase, Server

if TYPE_CHECKING:
    from themis_triton.core.decision import PipelineEvidence
    from themis_triton.core.status import PipelineStatus, Status

GOOD, INFO, WARN, BAD, IDLE = "green", "cyan", "yellow", "bold red", "dim"
_FEW_LATE = 2.0
MARKS = {GOOD: "●", INFO: "◐", WARN: "▲", BAD: "✖", IDLE: "○"}


@dataclass(frozen=True, slots=True)
class State:
    """A state: its words, its style, and its rank, the worst first."""

    words: str
    style: str
    rank: int

    @property
    def mark(self) -> str:
        """Its sign."""
        return MARKS[self.style]


def pipeline_state(pipeline: PipelineStatus) -> State:
    """How a pipeline does."""
    estimate, evidence = pipeline.estimate, pipeline.evidence
    if estimate is None:
        return State("no data", IDLE, 3)
    if pipeline.slo_violated:
        holds = f", holds in {evidence.holds_after_s:.0f} s" if evidence is not None and evidence.holds_after_s else ""
        return State(f"SLO missed{holds}", BAD, 0)
    if evidence is not None and pipeline.is_known and round(evidence.demand_fast_rps) > round(evidence.capacity_rps):
        return State("above capacity", WARN, 1)
    if evidence is not None and round(evidence.refused_rps) > 0:
        return State(f"refusing {evidence.refused_rps:.0f}/s", WARN, 1)
    if not pipeline.is_known:
        return State("learning", INFO, 2)
    return _calm(pipeline, estimate.recent_rps, evidence)


def _calm(pipeline: PipelineStatus, rate_rps: float, evidence: PipelineEvidence | None) -> State:
    minute = pipeline.slo_minute
    if minute.late >= _FEW_LATE and minute.budget_left is not None and minute.budget_left < 0.0:
        return State("just late", WARN, 1)  # in the last minute, although p99 is inside the SLO by now
    if rate_rps == 0.0 and pipeline.slo_violated is None:
        return State("no traffic", IDLE, 5)
    if evidence is not None and evidence.servers_now != evidence.servers_desired:
        return State("changing", INFO, 3)
    return State("inside SLO", GOOD, 4)


_PHASES = {
    Phase.LAUNCHING: State("starting", INFO, 2),
    Phase.WARMING: State("warming up", INFO, 2),
    Phase.SERVING: State("serving", GOOD, 4),
    Phase.UNREACHABLE: State("no metrics", WARN, 1),
    Phase.UNRESPONSIVE: State("not answering", BAD, 0),
    Phase.DRAINING: State("draining", INFO, 3),
    Phase.STOPPING: State("stopping", INFO, 3),
}


def server_state(server: Server, status: Status) -> State:
    """How a server does."""
    if server.phase is Phase.SERVING and any(_mentions(fault, server.name) for fault in status.faults):
        return State("fault", BAD, 0)
    return _PHASES[server.phase]


def _mentions(sentence: str, name: str) -> bool:
    return name in sentence.replace(",", " ").replace(":", " ").replace(";", " ").split()


def server_notes(server: Server, status: Status) -> str:
    """What is under way or waiting on a server."""
    notes = [f"ready{_remaining(status.remaining_s[server.name])}"] if server.name in status.remaining_s else []
    notes += [
        _busy(actuator, server.name) + (_remaining(status.remaining_s[actuator]) if actuator in status.remaining_s else "")
        for actuator in status.busy
        if _is_of(actuator, server.name)
    ]
    for actuator, until_s in status.backing_off.items():
        if _is_of(actuator, server.name):
            notes.append(f"retry of {_part(actuator, server.name)} in {max(0.0, until_s - (status.at_s or 0.0)):.0f} s")
    notes += [f"{_part(actuator, server.name)} rests" for actuator in status.resting if _is_of(actuator, server.name)]
    return ", ".join(notes)


def _remaining(seconds: float) -> str:
    return f" in about {seconds:.0f} s" if seconds > 0.0 else " later than expected"


def _is_of(actuator: str, name: str) -> bool:
    return actuator == name or actuator.startswith(f"{name}/")


def _part(actuator: str, name: str) -> str:
    return actuator.removeprefix(f"{name}/")


def _busy(actuator: str, name: str) -> str:
    return "change under way" if actuator == name else f"changing {_part(actuator, name)}"
