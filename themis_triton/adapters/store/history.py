"""The past from the journal, in as many steps as were asked for: SQLite joins the samples, so that a long range costs little here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from themis_triton.adapters.store.bounds import ROLL_UPS, aggregates
from themis_triton.adapters.store.reader import JournalReader
from themis_triton.core.action import Action
from themis_triton.core.decision import Clamp, PipelineEvidence
from themis_triton.core.decoding import decode
from themis_triton.core.history import (
    DecisionDetail,
    DecisionResult,
    DecisionStep,
    History,
    HistoryAction,
    HistoryDecision,
    PipelineHistory,
)
from themis_triton.core.record import describe

MIN_STEP_S = 5.0
MAX_DECISIONS = 400
MAX_ACTIONS = 400
MAX_OUTCOMES = 1_000
MAX_SENTENCE = 600
"""Characters of a sentence in a list; with many pipelines one has thousands. The decision itself has it whole."""
RESULT_S = 60.0
"""For how long after its last step a decision's result is measured."""
_WIDEST_S = max(width_s for _, width_s in ROLL_UPS)
_CHANGES = """
with changes as (
    select rowid as number, decision_id, at_s, reason, sentence, instr(sentence, '; would ') as advice
    from ticks where changed = 1 and at_s >= ? and at_s <= ?),
runs as (
    select *, lag(key) over (order by number) as before
    from (select *, iif(advice, reason || substr(sentence, advice), number) as key from changes))
select decision_id, at_s, reason, sentence, count(*) over () from runs where before is not key order by number desc limit ?
"""
"""Of equal proposals in a row, which advisory mode makes in each tick, the first."""
_ACTIONS = (
    "select action_id, ended_at_s, duration_s, kind, outcome, sentence, detail from outcomes "
    "where ended_at_s >= ? and ended_at_s <= ? order by rowid desc limit ?"
)
_SERIES = f"""
select pipeline, cast(at_s / ?3 as integer) * ?3 as step, {aggregates()}
from samples where pipeline in (select value from json_each(?4)) and at_s > ?1 - {_WIDEST_S} and at_s + width_s > ?1 and at_s < ?2
group by 1, 2 order by 1, 2
"""  # noqa: S608 - constants
_REQUESTS = (
    "select pipeline, cast(at_s / 60 as integer) * 60.0 as minute, sum(requests), sum(late_requests) from samples "
    "where at_s >= ? group by 1, 2 order by 2"
)
_AFTER = "select at_s, width_s, traffic_s, late_s, p99_ms, servers from samples where pipeline = ? and at_s >= ? and at_s < ? order by at_s"


def read_history(journal: JournalReader, from_s: float, until_s: float, points: int, slos_ms: Mapping[str, float]) -> History:
    """The pipelines of `slos_ms` from `from_s` to `until_s`, with at most `points` + 1 steps, and the newest changes of that time."""
    step_s = max(MIN_STEP_S, math.ceil((until_s - from_s) / points))
    rows: dict[str, list[Sequence[Any]]] = {name: [] for name in slos_ms}
    names = json.dumps(list(slos_ms))
    for name, *values in journal.rows(_SERIES, (from_s, until_s, step_s, names)) if journal.has_samples else ():
        rows[name].append(values)
    span = (from_s, until_s)
    changes = journal.rows(_CHANGES, (*span, MAX_DECISIONS))
    decisions = [HistoryDecision(name, at_s, reason, _shortened(sentence)) for name, at_s, reason, sentence, _ in changes]
    actions = [
        HistoryAction(name, ended_s - duration_s, duration_s, *words)
        for name, ended_s, duration_s, *words in journal.rows(_ACTIONS, (*span, MAX_ACTIONS))
    ]
    (ended,) = journal.rows("select count(*) from outcomes where ended_at_s >= ? and ended_at_s <= ?", span)[0]
    pipelines = tuple(_series(name, slo_ms, rows[name]) for name, slo_ms in slos_ms.items())
    omitted = (changes[0][-1] - len(decisions) if changes else 0) + ended - len(actions)
    return History(from_s, until_s, step_s, pipelines, tuple(decisions), tuple(actions), omitted)


def _series(name: str, slo_ms: float, rows: Sequence[Sequence[Any]]) -> PipelineHistory:
    if not rows:
        return PipelineHistory(name, slo_ms, 0.0, 0.0)
    at_s, _, rate, peak, demand, capacity, refused, servers, instances, traffic, late, p50, p99, requests, late_requests = (
        tuple(c) for c in zip(*rows, strict=True)
    )
    return PipelineHistory(
        name=name,
        slo_ms=slo_ms,
        traffic_s=sum(traffic),
        late_s=sum(late),
        requests=sum(requests),
        late_requests=sum(late_requests),
        at_s=at_s,
        rate_rps=_short(rate),
        peak_rps=_short(peak),
        demand_rps=_short(demand),
        capacity_rps=_short(capacity),
        refused_rps=_short(refused),
        servers=_short(servers),
        instances=_short(instances),
        p50_ms=tuple(None if value is None else round(value, 2) for value in p50),
        p99_ms=tuple(None if value is None else round(value, 2) for value in p99),
        late_by_step_s=_short(late),
    )


def read_requests(journal: JournalReader, since_s: float) -> list[tuple[str, float, float, float]]:
    """The requests of each pipeline by minute, oldest first: its name, the minute's start, those that ended, and the late ones."""
    return journal.rows(_REQUESTS, (since_s,)) if journal.has_samples else []


def _shortened(sentence: str) -> str:
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[: MAX_SENTENCE - 1]}…"


def _short(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in values)


def read_decision(journal: JournalReader, decision_id: str) -> DecisionDetail | None:
    """One decision, or another change, whole; None where the journal does not have it. ValueError for a record of another form."""
    record = journal.record(decision_id)
    if record is None:
        return None
    if "decision" not in record:
        row = journal.rows("select at_s, reason from ticks where decision_id = ? order by rowid desc limit 1", (decision_id,))[0]
        return DecisionDetail(decision_id, row[0], row[1], record["sentence"])
    try:
        return _detail(journal, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record of {decision_id} has another form ({type(error).__name__}: {error})") from error


def _detail(journal: JournalReader, record: Mapping[str, Any]) -> DecisionDetail:
    decision = record["decision"]
    outcomes = journal.outcomes(MAX_OUTCOMES, decision["id"])
    evidence = tuple(decode(PipelineEvidence, row) for row in decision["evidence"])
    end_s = max((row["ended_at_s"] for row in outcomes), default=decision["at_s"])
    return DecisionDetail(
        id=decision["id"],
        at_s=decision["at_s"],
        reason=decision["reason"],
        sentence=record["sentence"],
        policy=decision["policy"],
        stage=decision["stage"],
        advisory=record["advisory"],
        detail=decision["detail"],
        evidence=evidence,
        clamps=tuple(decode(Clamp, row) for row in decision["clamps"]),
        steps=_steps(record["plan"]["actions"], {row["action_id"]: row for row in outcomes}),
        results=tuple(_result(journal, each, decision["at_s"], end_s) for each in evidence),
    )


def _steps(actions: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Mapping[str, Any]]) -> tuple[DecisionStep, ...]:
    steps = []
    for data in actions:
        action = decode(Action, data)
        step = DecisionStep(action.id, action.kind.value, describe(action), action.requires)
        ended = outcomes.get(action.id)
        if ended is not None:
            started_s = ended["ended_at_s"] - ended["duration_s"]
            step = DecisionStep(
                *(action.id, action.kind.value, describe(action), action.requires),
                *(ended["outcome"], started_s, ended["duration_s"], ended["detail"]),
            )
        steps.append(step)
    return tuple(steps)


def _result(journal: JournalReader, evidence: PipelineEvidence, at_s: float, end_s: float) -> DecisionResult:
    """What the samples show from the decision to a minute after its last step."""
    until_s = end_s + RESULT_S
    rows = journal.rows(_AFTER, (evidence.pipeline, at_s - MIN_STEP_S, until_s)) if journal.has_samples else []
    held_s = next((max(0.0, start_s - at_s) for start_s, _, traffic_s, late_s, *_ in rows if traffic_s and not late_s), None)
    p99s = [p99_ms for start_s, _, _, _, p99_ms, _ in rows if start_s >= end_s and p99_ms is not None]
    return DecisionResult(
        pipeline=evidence.pipeline,
        slo_ms=evidence.slo_ms,
        predicted_p99_ms=evidence.predicted_p99_ms,
        predicted_holds_after_s=evidence.holds_after_s,
        servers_desired=evidence.servers_desired,
        measured_p99_ms=max(p99s, default=None),
        held_after_s=held_s,
        servers=rows[-1][5] if rows else None,
        observed_s=rows[-1][0] + rows[-1][1] - at_s if rows else 0.0,
    )
