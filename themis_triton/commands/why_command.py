"""`themis why`: one decision with its evidence, its actions, their outcomes, and what came of it, from the journal."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.history import read_decision
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import JournalReader, reading
from themis_triton.commands.decision_results import result_words
from themis_triton.commands.moments import moment, parse_moment
from themis_triton.commands.terminal import TerminalConsole, write_line
from themis_triton.core.decoding import decode
from themis_triton.core.encoding import plain
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.estimate import PipelineKnowledge
from themis_triton.core.history import DecisionResult
from themis_triton.core.printable import one_line
from themis_triton.core.record import knowledge_words
from themis_triton.settings.runtime import load_runtime_paths

MAX_OUTCOMES = 1000
MAX_RECORDS = 100
"""So many of the newest changes are searched for one with actions."""
NO_DECISIONS = frozenset(
    {
        "paused",
        "resumed",
        "tick_failed",
        "journal_replaced",
        "journal_rows_lost",
        "settings_reloaded",
        "settings_refused",
        "settings_edited",
        "service_times_learnt",
        "pinned",
        "pin_ended",
        "bounded",
        "drain_requested",
        "drained",
        "drained_rests",
        "drain_ended",
        "mode_changed",
        "day_reported",
        "predictions_failed",
        "predictions_restored",
    }
)
_CHANGES = "select decision_id, reason from ticks where changed = 1 and at_s <= ? order by rowid desc limit ?"
EVIDENCE_KEYS = ("demand_fast_rps", "demand_slow_rps", "capacity_rps", "measured_p99_ms", "predicted_p99_ms", "slo_ms")


def why_command(path: Path, decision: str | None, *, as_json: bool, at: str | None = None) -> None:
    """Print one decision: evidence, actions, outcomes, and what came of it.

    `decision` None: the newest with actions, else the newest change. `at`: the newest until that time instead.

    SettingsError for an id that is not in the journal.
    """
    with reading(journal_path(load_runtime_paths(path).state_directory)) as journal:
        until_s = float("inf") if at is None else parse_moment(at, "--at", SystemClock().now_s(), "now")
        name = decision if decision is not None else _newest_decision(journal, until_s)
        if name is None and at is not None:
            raise SettingsError(
                f"--at: {at}: the journal has no decision of that time or before. Fix: `themis history -c {path} --since 7d`"
            )
        if name is None:
            _print_no_change(journal, as_json=as_json)
            return
        record = journal.record(name)
        outcomes = journal.outcomes(MAX_OUTCOMES, name)[::-1]
        results = _results(journal, name)
    if record is None:
        raise SettingsError(
            f"{name}: the journal has no such decision. Fix: `themis history -c {path}` lists them (--since 2d: older ones)"
        )
    if as_json:
        sys.stdout.write(json.dumps(record | {"outcomes": outcomes, "results": plain(results)}) + "\n")
        return
    if "decision" in record:
        try:
            _print_decision(record, outcomes, results)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            raise EnvironmentCheckError(
                f"{name}: its record in the journal has another form ({type(error).__name__}: {error}). Fix: read it with --json"
            ) from error
    else:
        write_line(f"{record['sentence']}")


def _results(journal: JournalReader, decision: str) -> tuple[DecisionResult, ...]:
    """What came of a decision; nothing where its record has another form, which is reported where it is read."""
    with suppress(ValueError):
        detail = read_decision(journal, decision)
        return detail.results if detail is not None else ()
    return ()


def _newest_decision(journal: JournalReader, until_s: float) -> str | None:
    """The newest decision until a time that has actions, else the newest change; pauses and failed ticks have no decision."""
    changes = journal.rows(_CHANGES, (until_s, MAX_OUTCOMES))
    names = [str(name) for name, reason in changes if reason not in NO_DECISIONS]
    return next((name for name in names[:MAX_RECORDS] if _has_actions(journal, name)), names[0] if names else None)


def _has_actions(journal: JournalReader, decision: str) -> bool:
    with suppress(ValueError):
        plan = (journal.record(decision) or {}).get("plan")
        return isinstance(plan, dict) and bool(plan.get("actions"))
    return False


def _print_no_change(journal: JournalReader, *, as_json: bool) -> None:
    last = journal.ticks(1)
    if as_json:
        sys.stdout.write("null\n")
        return
    write_line("nothing was changed yet")
    for row in last:
        write_line(f"{moment(row['at_s'], SystemClock().now_s())}  last tick: {row['sentence']}")


def _print_decision(record: dict[str, Any], outcomes: list[dict[str, Any]], results: tuple[DecisionResult, ...]) -> None:
    console = TerminalConsole(soft_wrap=True)
    decision = record["decision"]
    mode = ", advisory" if record["advisory"] else ""
    lines = [
        f"{moment(decision['at_s'], SystemClock().now_s())}  {decision['id']}  policy {decision['policy']}, {decision['reason']}{mode}"
    ]
    lines += [record["sentence"], *(f"limited: {clamp['sentence']}" for clamp in decision["clamps"])]
    lines += [f"next best of {row['pipeline']}: {row['runner_up']}" for row in decision["evidence"] if row["runner_up"]]
    known = [decode(PipelineKnowledge, row) for row in record["estimate"].get("knowledge", ())]
    lines += [knowledge_words(each, advisory=record["advisory"]) for each in known]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    guessed = {each.pipeline for each in known if not each.enough}
    rows = [row | {"capacity_rps": None} if row["pipeline"] in guessed else row for row in decision["evidence"]]
    console.print(_evidence(rows, _instances(record["plan"]["actions"])))
    for row in outcomes:
        detail = f": {one_line(row['detail'])}" if row["detail"] else ""
        console.print(f"{row['sentence']}: {row['outcome']} after {row['duration_s']:.1f} s{detail}", markup=False, highlight=False)
    if record["plan"]["actions"] and not outcomes:
        console.print("no outcome yet" if not record["advisory"] else "nothing was changed: advisory")
    for words in result_words(results):
        console.print(f"what came of it: {words}", markup=False, highlight=False)


def _evidence(rows: list[dict[str, Any]], instances: tuple[int, int]) -> Table:
    numbers = ("demand/s", "stable/s", "capacity", "p99 ms", "predicted", "SLO ms")
    columns = (Column(title, no_wrap=True, justify="right") for title in numbers)
    table = Table(
        Column("pipeline", overflow="fold"),
        *columns,
        Column("now→wanted", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    for row in rows:
        cells = ["–" if row[key] is None else f"{row[key]:.0f}" for key in EVIDENCE_KEYS]
        table.add_row(row["pipeline"], *cells, _counts(row, instances if len(rows) == 1 else None))
    return table


def _counts(row: dict[str, Any], instances: tuple[int, int] | None) -> str:
    """The servers now and wanted; where their number stays, also the instances before and after what the plan changes."""
    now, wanted, unit = row["servers_now"], row["servers_desired"], row.get("unit", "server")
    if now != wanted:
        return f"{now}→{wanted} {unit}s"
    changed = f", {instances[0]}→{instances[1]} instances" if instances is not None and instances[0] != instances[1] else ""
    return f"{now} {unit}{'' if now == 1 else 's'}{changed}"


def _instances(actions: list[dict[str, Any]]) -> tuple[int, int]:
    """The instances before and after the actions that change them, of the models that they change."""
    states = [(action["before"], action["after"]) for action in actions if action["before"] and action["after"]]
    return sum(before["instances"] for before, _ in states), sum(after["instances"] for _, after in states)
