"""`themis status`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.status_client import get
from themis_triton.core.errors import ServerError
from themis_triton.daemon.control import running_pid
from themis_triton.settings.runtime import load_runtime_paths

EVENTS_SHOWN = 8


def status_command(path: Path, *, as_json: bool) -> None:
    """Ask the running sidecar. ServerError when it does not answer, or something else answers there."""
    status = asked(path)
    console = Console()
    if as_json:
        console.file.write(json.dumps(status) + "\n")
        return
    show(status, console)


def asked(path: Path) -> dict[str, Any]:
    """The status of the sidecar of these settings; raises as `status_command` does."""
    where = load_runtime_paths(path)
    address = where.status_address
    try:
        response = get(address, "/status")
    except ServerError as error:
        pid = running_pid(where.state_directory)
        fix = (
            f"the sidecar with pid {pid} is starting, ending or stuck: see its log"
            if pid is not None
            else f"none runs; `themis history -c {path}` shows what the last one did, `themis run -c {path}` starts one"
        )
        raise ServerError(f"{path}: status.address: {error}. {fix}") from error
    try:
        status = json.loads(response.body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or "policy" not in status:
        raise ServerError(
            f"{path}: status.address: {address} is not a Themis status endpoint (HTTP {response.code}, {response.body[:80]!r}). "
            "Fix: set status.address to that of the running sidecar"
        )
    return status


def show(status: dict[str, Any], console: Console) -> None:
    """The status for people: what it does and why, the servers, the last changes."""
    mode = "paused: nothing is changed until `themis resume`" if status.get("paused") else status["mode"]
    console.print(Text.assemble((status["policy"], "bold"), f", {mode}; {status['sentence']}"), soft_wrap=True)
    console.print(_health(status), style="red" if status.get("tick_errors") else "dim", markup=False, highlight=False)
    console.print(_pipelines(status))
    console.print(_servers(status))
    for source, why in status.get("stale", {}).items():
        console.print(f"stale: {source}: {why}", style="yellow", markup=False, soft_wrap=True)
    for clamp in status.get("clamps", []):
        console.print(f"limited: {clamp['sentence']}", style="yellow", markup=False, soft_wrap=True)
    for lever, until_s in sorted(status.get("held", {}).items()):
        left_s = until_s - status["at_s"]
        console.print(f"in back-off after a failure: {lever}, for {left_s:.0f} s more", style="yellow", markup=False, soft_wrap=True)
    for words in status.get("drift", []):
        console.print(f"drift: {words}", style="yellow", markup=False, soft_wrap=True)
    if status.get("journal_trouble"):
        console.print(f"{status['journal_trouble']}", style="red", markup=False, soft_wrap=True)
    if status.get("routes_unwritten"):
        console.print(f"routes not written: {status['routes_unwritten']}", style="red", markup=False, soft_wrap=True)
    for event in status["events"][-EVENTS_SHOWN:]:
        at = f"{datetime.fromtimestamp(event['at_s'], UTC).astimezone():%H:%M:%S}"
        console.print(f"{at}  {event['decision_id']}  {event['sentence']}", markup=False, soft_wrap=True, highlight=False)


def _health(status: dict[str, Any]) -> str:
    """Whether what is shown is fresh."""
    if "at_s" not in status:
        return f"pid {status.get('pid', '–')}, no tick yet"
    return (
        f"pid {status['pid']}, last tick {max(0.0, SystemClock().now_s() - status['at_s']):.1f} s ago, {status['tick_errors']} failed ticks"
    )


def _pipelines(status: dict[str, Any]) -> Table:
    table = Table("pipeline", "rate 1/s", "capacity 1/s", "p99 ms", "SLO ms", "servers now → wanted", title_justify="left")
    for pipeline in status["pipelines"]:
        estimate, evidence = pipeline["estimate"] or {}, pipeline["evidence"] or {}
        servers = f"{evidence['servers_now']} → {evidence['servers_wanted']}" if evidence else "–"
        cells = (estimate.get("recent_rps"), evidence.get("capacity_rps"), estimate.get("p99_ms"), pipeline["slo_ms"])
        table.add_row(pipeline["name"], *(f"{cell:.0f}" if cell is not None else "–" for cell in cells), servers)
    return table


def _servers(status: dict[str, Any]) -> Table:
    table = Table("server", "phase", "device", "instances", "by whom")
    for server in status["servers"]:
        held = ", ".join(f"{model} {state['instances']}" for model, state in sorted(server["models"].items()))
        table.add_row(server["name"], server["phase"], server["device"], held, "launched" if server["launched"] else "adopted")
    return table
