"""`themis status`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import chain
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.status_client import StatusResponse
from themis_triton.commands.moments import age, moment
from themis_triton.commands.status_calls import LOCAL, Remote, ServerRefusedError, read
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.core.control import Mode
from themis_triton.core.encoding import parsed_json, plain
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import ModelState
from themis_triton.core.lease import Leader
from themis_triton.core.overrides import bounds_words, drain_words, said
from themis_triton.core.printable import one_line
from themis_triton.core.record import knowledge_words
from themis_triton.core.status import STATUS_PATH, NodesStatus, NodeTypeStatus, PipelineStatus, Status, decode_status
from themis_triton.daemon.control import running_pid
from themis_triton.settings.runtime import load_runtime_paths

MAX_EVENTS_SHOWN = 8
MAX_SENTENCE_PIPELINES = 3


def status_command(path: Path, *, as_json: bool, remote: Remote = LOCAL) -> None:
    """Print the status of the running sidecar. ServerError if no Themis sidecar answers."""
    status = fetch_status(path, remote)
    if as_json:
        sys.stdout.write(json.dumps(plain(status)) + "\n")
        return
    show(status, TerminalConsole(), SystemClock().now_s())


def fetch_status(path: Path, remote: Remote = LOCAL) -> Status:
    """The status of the sidecar of these settings; raises as `status_command` does."""
    where = load_runtime_paths(path)
    address = where.status_address
    try:
        response = read(where, STATUS_PATH, remote)
    except ServerRefusedError as error:
        raise ServerRefusedError(f"{path}: {error}") from error
    except ServerError as error:
        pid = running_pid(where.state_directory)
        fix = (
            f"The sidecar with pid {pid} is starting, stopping or stuck. Fix: read its log"
            if pid is not None
            else f"No sidecar is running. Fix: start it with `themis run -c {path}`; `themis history -c {path}` shows past changes"
        )
        raise ServerError(f"{path}: status.address: {error}. {fix}") from error
    try:
        return decode_status(parsed_json(response.body))
    except ValueError as error:
        raise _refused(path, str(address), response, error) from error


def _refused(path: Path, address: str, response: StatusResponse, error: ValueError) -> ServerError:
    """The error for an answer that is not a status, or a status of another version."""
    if "version" in str(error) and response.code == HTTPStatus.OK and "has no" not in str(error):
        return ServerError(f"{path}: status.address: {address}: {error}. Fix: install the same version of themis-triton on both sides")
    return ServerError(
        f"{path}: status.address: {address} is not a Themis status endpoint (HTTP {response.code}, {response.body[:80]!r}). "
        "Fix: set status.address to that of the running sidecar"
    )


def show(status: Status, console: Console, now_s: float) -> None:
    """Print the status as tables: mode and reason, pipelines, servers, limits, next steps and newest changes."""
    mode = "paused: nothing is changed until `themis resume`" if status.paused else status.mode
    console.print(Text.assemble((status.policy, "bold"), f", {mode}; {headline(status)}"), soft_wrap=True)
    console.print(_health(status, now_s), style="red" if status.tick_errors else "dim", markup=False, highlight=False, soft_wrap=True)
    if status.pipelines:
        console.print(_pipelines(status))
    if status.servers:
        console.print(_servers(status))
    if status.nodes is not None:
        console.print(_node_types(status.nodes, now_s))
    for sentence, style in notices(status):
        console.print(sentence, style=style, markup=False, soft_wrap=True, highlight=False)
    for event in status.events[-MAX_EVENTS_SHOWN:]:
        at = f"{datetime.fromtimestamp(event.at_s, UTC).astimezone():%H:%M:%S} ({age(now_s - event.at_s)} ago)"
        console.print(f"{at}  {event.decision_id}  {one_line(event.sentence)}", markup=False, soft_wrap=True, highlight=False)


def headline(status: Status) -> str:
    """The newest decision; with many pipelines only its reason, because each pipeline has its own row."""
    if status.tick_error is not None or len(status.pipelines) <= MAX_SENTENCE_PIPELINES:
        return status.sentence
    violated = sum(pipeline.slo_violated is True for pipeline in status.pipelines)
    verb = "exceeds its" if violated == 1 else "exceed their"
    return f"{(status.reason or '').replace('_', ' ')}; {violated} of {len(status.pipelines)} pipelines {verb} SLO now"


def _health(status: Status, now_s: float) -> str:
    """The age of the status and the cost of the fleet."""
    if status.at_s is None:
        return f"pid {status.pid}, no tick yet"
    cost = f"cost {status.cost_per_s:g} price units a second, {status.usage.cost:.0f} since start"
    cost += f"; launched servers {status.price_per_hour:.4g} an hour" if status.price_per_hour is not None else ""
    return f"pid {status.pid}, last tick {max(0.0, now_s - status.at_s):.1f} s ago, {status.tick_errors} failed ticks; {cost}"


def notices(status: Status) -> Iterator[tuple[str, str]]:
    """Warnings, running actions and next steps, each with its style."""
    yield from ((f"stale: {source}: {reason}", "yellow") for source, reason in status.stale.items())
    yield from ((f"limited: {clamp.sentence}", "yellow") for clamp in status.clamps)
    for actuator, until_s in sorted(status.backing_off.items()):
        yield f"in back-off after a failure: {actuator}, for {until_s - (status.at_s or 0.0):.0f} s more", "yellow"
    yield from ((f"{slot}: {reason}", "yellow") for slot, reason in sorted(status.resting.items()))
    yield from ((f"admission: {words}", "yellow") for words in map(_admission_words, status.pipelines) if words)
    yield from ((words, "yellow" if not enough else "green") for words, enough in _knowledge(status))
    yield from ((sentence, "yellow") for sentence in status.predictions)
    yield from ((f"drift: {sentence}", "yellow") for sentence in status.drift)
    yield from ((f"{pipeline.name}: {pipeline.order}", "default") for pipeline in status.pipelines if pipeline.order)
    yield from ((f"requests a stage: {words}", "default") for words in map(_calls_words, status.pipelines) if words)
    yield from ((f"rows: {words}", "default") for words in dict.fromkeys(chain.from_iterable(map(_size_words, status.pipelines))))
    yield from ((f"shared: {words}", "default") for pipeline in status.pipelines for words in _sum_words(pipeline))
    yield from ((f"fault: {sentence}", "red") for sentence in status.faults)
    if status.leader is not None:
        yield _leader_words(status.leader), "default"
    if status.report is not None:
        yield f"yesterday: {status.report.sentence}", "default"
    yield from _file_notices(status)
    for each in status.overrides.bounds:
        yield f"{bounds_words(each)}, until {moment(each.until_s, each.until_s).partition(' (')[0]}", "yellow"
    yield from ((drain_words(drain), "yellow") for drain in status.overrides.drains)
    if status.overrides.mode is not None:
        yield f"switched to {status.mode} mode{said(status.overrides.mode.by, status.overrides.mode.why)}", "yellow"
    if status.busy:
        yield f"under way: {', '.join(status.busy)}", "default"
    if status.next_steps:
        yield f"next: {', '.join(status.next_steps)}", "default"


def _file_notices(status: Status) -> Iterator[tuple[str, str]]:
    """What is wrong with the files that the sidecar writes and reads."""
    if status.journal_trouble:
        yield status.journal_trouble, "red"
    if status.settings_edited:
        yield status.settings_edited, "yellow"
    if status.routes_unwritten:
        yield f"routes not written: {status.routes_unwritten}", "red"


def _leader_words(leader: Leader) -> str:
    who = "this sidecar" if leader.here else leader.name or "no sidecar"
    since = f" since {moment(leader.since_s, leader.since_s).partition(' (')[0]}" if leader.since_s is not None else ""
    return f"leader: {who}{since}, lease epoch {leader.epoch}"


def _admission_words(pipeline: PipelineStatus) -> str:
    """A limit that refuses requests now."""
    evidence = pipeline.evidence
    if evidence is None or evidence.limit_rps is None or not round(evidence.refused_rps):
        return ""
    return f"{pipeline.name} refuses {evidence.refused_rps:.0f}/s, because its servers carry {evidence.limit_rps:.0f}/s inside the SLO"


def _knowledge(status: Status) -> Iterator[tuple[str, bool]]:
    """What is known of the pipelines whose models have no profile."""
    for pipeline in status.pipelines:
        if pipeline.knowledge is not None:
            yield knowledge_words(pipeline.knowledge, advisory=status.mode == Mode.ADVISORY), pipeline.knowledge.enough


def _calls_words(pipeline: PipelineStatus) -> str:
    """The stages of which a request makes more or less than one request."""
    per_request = pipeline.estimate.per_request if pipeline.estimate is not None else ()
    called = [f"{calls:g} of {stage}" for stage, calls in zip(pipeline.stages, per_request, strict=False) if calls != 1.0]
    return f"a request of {pipeline.name} makes {', '.join(called)}" if called else ""


def _size_words(pipeline: PipelineStatus) -> Iterator[str]:
    """The models whose requests have several rows, or are answered by a cache."""
    sizes = pipeline.estimate.sizes if pipeline.estimate is not None else ()
    for stage, size in zip(pipeline.stages, sizes, strict=False):
        rows = f"requests of {stage} have {size.rows:g} rows of a batch" if size.rows != 1.0 else ""
        cached = f"a cache answers {1.0 - size.executed:.0%} of those of {stage}" if size.executed != 1.0 else ""
        yield from [", ".join(filter(None, (rows, cached)))] if rows or cached else []


def _sum_words(pipeline: PipelineStatus) -> Iterator[str]:
    """The demand of each stage that others call too, with its parts."""
    estimate = pipeline.estimate
    others = estimate.others if estimate is not None else ()
    for stage, calls, parts in zip(pipeline.stages, estimate.per_request if estimate is not None else (), others, strict=False):
        if estimate is not None and parts:
            own_rps = calls * estimate.stable_rps
            named = [f"{part.stable_rps:.0f}/s {'of direct calls' if part.pipeline is None else f'of {part.pipeline}'}" for part in parts]
            total_rps = own_rps + sum(part.stable_rps for part in parts)
            yield f"{stage} gets {total_rps:.0f}/s: {own_rps:.0f}/s of {pipeline.name}, {', '.join(named)}"


def _pipelines(status: Status) -> Table:
    titles = ("pipeline", "rate/s", "capacity", "p99/SLO ms", "late 1m/1h/24h", "budget", counted(status))
    table = Table(*titles, box=SIMPLE_HEAD, pad_edge=False)
    for pipeline in status.pipelines:
        table.add_row(*_pipeline_cells(pipeline), style="red" if pipeline.slo_violated else None)
    return table


def counted(status: Status) -> str:
    """What the last column counts: servers, devices of servers, or both."""
    units = {pipeline.evidence.unit for pipeline in status.pipelines if pipeline.evidence is not None}
    return f"{units.pop()}s" if len(units) == 1 else "places" if units else "servers"


def _pipeline_cells(pipeline: PipelineStatus) -> tuple[str, ...]:
    estimate, evidence = pipeline.estimate, pipeline.evidence
    rate_rps = estimate.recent_rps if estimate is not None else None
    capacity_rps = evidence.capacity_rps if evidence is not None and pipeline.is_known else None
    p99_ms = estimate.p99_ms if estimate is not None else None
    windows = (pipeline.slo_minute, pipeline.slo_hour, pipeline.slo_day)
    late = "/".join(_percent(window.attainment) for window in windows) + " %" if pipeline.slo_day.requests else "–"
    left = "–" if pipeline.slo_day.budget_left is None else f"{100 * pipeline.slo_day.budget_left:.0f} %"
    servers = "–" if evidence is None else evidence.servers_words
    latency = f"{_whole(p99_ms)}/{pipeline.slo_ms:.0f}"
    return (pipeline.name, _whole(rate_rps), _whole(capacity_rps), latency, late, left, servers)


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{number:.0f}"


def _percent(attainment: float | None) -> str:
    """What is late of the requests, in percent."""
    late = 100.0 * (1.0 - attainment) if attainment is not None else None
    return "–" if late is None else f"{late:.1f}" if late < 10.0 else f"{late:.0f}"


def _servers(status: Status) -> Table:
    table = Table("server", "phase", "device", "instances", "origin", box=SIMPLE_HEAD, pad_edge=False)
    for server in status.servers:
        models = ", ".join(f"{model} {instances_words(state)}" for model, state in sorted(server.models.items()))
        devices = ", ".join(device for device in server.devices if server.runs_on(device))
        table.add_row(server.name, server.phase.value, devices, escape(models), "launched" if server.launched else "adopted")
    return table


def _node_types(nodes: NodesStatus, now_s: float) -> Table:
    """Prices, slots and what is free; the title says how old that is."""
    read = f", nodes as of {age(now_s - nodes.at_s)} ago" if nodes.at_s is not None else ", nodes not read yet"
    read += f": {one_line(nodes.error)}" if nodes.error is not None else ""
    titles = ("node type", "per hour", "slots used", "nodes", "free devices", "more servers fit")
    title = Text(f"Node types{read}", style="yellow" if nodes.error is not None else "")
    table = Table(*titles, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for each in nodes.node_types:
        table.add_row(*map(escape, node_type_cells(each)), style="yellow" if each.free_places == 0 else None)
    return table


def node_type_cells(each: NodeTypeStatus) -> tuple[str, ...]:
    """A node type: name, price, slots, nodes, free of all devices, further places."""
    price = f"{each.price_per_hour:g}" if each.price_per_hour is not None else "–"
    free = each.free_devices
    devices = ", ".join(
        f"{f'{free.get(kind, 0.0):g} of ' if free is not None else ''}{amount:g} {kind}" for kind, amount in sorted(each.devices.items())
    )
    numbers = (_whole(each.nodes), devices or "–", _whole(each.free_places))
    return (each.node_type, price, f"{each.used_slots} of {each.slots}", *numbers)


def instances_words(state: ModelState) -> str:
    """The number of instances, with those on each device if they are on several."""
    on_each = ", ".join(f"{device} {count}" for device, count in state.spread) if len(state.spread) > 1 else ""
    return f"{state.instances} ({on_each})" if on_each else str(state.instances)
