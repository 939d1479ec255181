"""`themis why`: one decision with its evidence, its actions and their outcomes, from the journal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import JournalReader, reading
from themis_triton.commands.moments import moment
from themis_triton.core.errors import SettingsError
from themis_triton.settings.runtime import load_runtime_paths

MAX_OUTCOMES = 1000
PAUSES = frozenset({"paused", "resumed"})
EVIDENCE_KEYS = ("demand_fast_rps", "demand_slow_rps", "capacity_rps", "measured_p99_ms", "predicted_p99_ms", "slo_ms")


def why_command(path: Path, decision: str | None, *, as_json: bool) -> None:
    """Print one decision: evidence, actions and outcomes. `decision` None: the newest that changed something.

    SettingsError for an id that is not in the journal.
    """
    with reading(journal_path(load_runtime_paths(path).state_directory)) as journal:
        name = decision if decision is not None else _newest_decision(journal)
        if name is None:
            _print_no_change(journal, as_json=as_json)
            return
        record = journal.record(name)
        outcomes = journal.outcomes(MAX_OUTCOMES, name)[::-1]
    if record is None:
        raise SettingsError(
            f"{name}: the journal has no such decision. Fix: `themis history -c {path}` lists them (--since 2d: older ones)"
        )
    if as_json:
        sys.stdout.write(json.dumps(record | {"outcomes": outcomes}) + "\n")
        return
    if "decision" in record:
        _print_decision(record, outcomes)
    else:
        sys.stdout.write(f"{record['sentence']}\n")


def _newest_decision(journal: JournalReader) -> str | None:
    """The newest decision that changed something; pauses have no decision."""
    changes = journal.ticks(MAX_OUTCOMES, changed_only=True)
    return next((row["decision_id"] for row in changes if row["reason"] not in PAUSES), None)


def _print_no_change(journal: JournalReader, *, as_json: bool) -> None:
    last = journal.ticks(1)
    if as_json:
        sys.stdout.write("null\n")
        return
    sys.stdout.write("nothing was changed yet\n")
    for row in last:
        sys.stdout.write(f"{moment(row['at_s'], SystemClock().now_s())}  last tick: {row['sentence']}\n")


def _print_decision(record: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
    console = Console(soft_wrap=True)
    decision = record["decision"]
    mode = ", advisory" if record["advisory"] else ""
    lines = [
        f"{moment(decision['at_s'], SystemClock().now_s())}  {decision['id']}  policy {decision['policy']}, {decision['reason']}{mode}"
    ]
    lines += [record["sentence"], *(f"limited: {clamp['sentence']}" for clamp in decision["clamps"])]
    lines += [f"next best of {row['pipeline']}: {row['runner_up']}" for row in decision["evidence"] if row["runner_up"]]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    console.print(_evidence(decision["evidence"]))
    for row in outcomes:
        detail = f": {row['detail']}" if row["detail"] else ""
        console.print(f"{row['sentence']}: {row['outcome']} after {row['duration_s']:.1f} s{detail}", markup=False, highlight=False)
    if record["plan"]["actions"] and not outcomes:
        console.print("no outcome yet" if not record["advisory"] else "nothing was changed: advisory")


def _evidence(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "pipeline",
        "demand 1/s",
        "stable 1/s",
        "capacity 1/s",
        "p99 ms",
        "predicted",
        "SLO ms",
        "servers now → desired",
        box=box.SIMPLE_HEAD,
    )
    for row in rows:
        cells = ["–" if row[key] is None else f"{row[key]:.0f}" for key in EVIDENCE_KEYS]
        table.add_row(row["pipeline"], *cells, f"{row['servers_now']} ({row['servers_desired']})")
    return table
