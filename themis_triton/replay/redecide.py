"""Decides recorded ticks again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from themis_triton.adapters.store.recording import Segment
from themis_triton.core.action import Plan
from themis_triton.core.decision import Decision
from themis_triton.core.encoding import plain
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.tick import redecide


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a decision from the recorded one. `path`: the value's place in the decision and its plan."""

    at_s: float
    decision_id: str
    path: str
    recorded: object
    now: object

    @property
    def sentence(self) -> str:
        """The difference in words."""
        return f"{self.decision_id}: {self.path} was {self.recorded!r:.200} and is now {self.now!r:.200}"


def differences(segment: Segment) -> Iterator[Difference | None]:
    """For each tick of a segment: None where decision and plan are the recorded ones to the byte, else their first difference."""
    state, planner = segment.state, Planner(build_rules(segment.config))
    for tick in segment.ticks:
        state, decision, planned = redecide(state, tick.snapshot, planner)
        recorded, now = _encoded(tick.decision, tick.plan), _encoded(decision, planned)
        if recorded == now:
            yield None
        else:
            path, old, new = _first(json.loads(recorded), json.loads(now), "")
            yield Difference(tick.snapshot.at_s, tick.decision.id, path, old, new)


def _encoded(decision: Decision, planned: Plan) -> str:
    return json.dumps({"decision": plain(decision), "plan": plain(planned)})


def _first(recorded: Any, now: Any, path: str) -> tuple[str, object, object]:  # noqa: ANN401 - JSON has no narrower type
    """The first place where two JSON values differ, and both values there."""
    if isinstance(recorded, dict) and isinstance(now, dict) and list(recorded) == list(now):
        key = next(key for key in recorded if json.dumps(recorded[key]) != json.dumps(now[key]))
        return _first(recorded[key], now[key], f"{path}.{key}" if path else str(key))
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        index = next(index for index, (old, new) in enumerate(zip(recorded, now, strict=True)) if json.dumps(old) != json.dumps(new))
        return _first(recorded[index], now[index], f"{path}[{index}]")
    return path, recorded, now
