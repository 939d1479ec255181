"""`themis replay`: decides recorded time again, and shows what other settings would have made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich import box
from rich.table import Table

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.reader import JournalReader, reading
from themis_triton.adapters.store.recording import Segment, read_segments, recorded_span
from themis_triton.commands.moments import moment, parse_moment
from themis_triton.commands.terminal import TerminalConsole, write_line
from themis_triton.commands.warm_command import planning_groups, prepare_kernels
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.policy import PolicyName
from themis_triton.estimate.attainment import RequestCounter
from themis_triton.estimate.minutes import MAX_TICK_S, Minutes
from themis_triton.jit import Group
from themis_triton.replay.first import first_servers
from themis_triton.replay.otherwise import (
    BINS,
    Account,
    Stretch,
    arrival_times,
    counts_over_time,
    measured_account,
    simulated_account,
    with_changes,
)
from themis_triton.replay.redecide import Difference, differences
from themis_triton.settings.runtime import load_runtime_paths

MIN_STRETCH_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplayFlags:
    """The options of the command line: spans as texts, SLOs as `PIPELINE=MS`."""

    journal: Path
    slos: tuple[str, ...] = ()
    policy: str | None = None
    from_text: str | None = None
    to_text: str | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many ticks were decided again, how many differ, and the first of these."""

    ticks: int
    differing: int
    first: Difference | None
    from_s: float
    to_s: float


def replay_command(flags: ReplayFlags, *, as_json: bool) -> int:
    """Decide the recorded ticks again, or simulate their arrivals under other settings; returns the exit code: 1 where decisions differ."""
    with reading(flags.journal) as journal:
        segments = _segments(journal, flags)
        changes = _changes(journal, segments)
    slos_ms, policy = _slos_ms(flags.slos, segments[-1].config), _policy(flags.policy)
    otherwise = bool(slos_ms) or policy is not None
    prepare_kernels((*planning_groups(segments[-1].config), *((Group.SIMULATOR,) if otherwise else ())))
    if otherwise:
        accounts = _accounts(segments, slos_ms, policy, changes)
        _print_accounts(accounts, as_json=as_json)
        return 0
    replayed = replay(segments)
    _print_replayed(replayed, as_json=as_json)
    return 0 if replayed.first is None else 1


def chosen_journal(settings: Path | None, journal: Path | None) -> Path:
    """The journal of a settings file, or the one that is named. SettingsError where it is neither or both."""
    if (settings is None) is (journal is None):
        raise SettingsError("expected either -c, a settings file, or --journal, a file. Fix: name one of them")
    return (
        journal if journal is not None else journal_path(load_runtime_paths(settings if settings is not None else Path()).state_directory)
    )


def replay(segments: Iterable[Segment]) -> Replayed:
    """Decide the ticks of segments again."""
    ticks = differing = 0
    first, from_s, to_s = None, 0.0, 0.0
    for segment in segments:
        for tick, difference in zip(segment.ticks, differences(segment), strict=True):
            from_s, to_s = from_s if ticks else tick.snapshot.at_s, tick.snapshot.at_s
            ticks += 1
            if difference is not None:
                differing, first = differing + 1, first or difference
    return Replayed(ticks, differing, first, from_s, to_s)


def _segments(journal: JournalReader, flags: ReplayFlags) -> list[Segment]:
    span = recorded_span(journal)
    if span is None:
        fix = "run the sidecar with a `retention.max_recording` above 0, and replay later"
        raise EnvironmentCheckError(f"{flags.journal}: the journal has no recording. Fix: {fix}")
    from_s, to_s = _time(flags.from_text, "--from", span[1], span[0]), _time(flags.to_text, "--to", span[1], span[1])
    segments, others = read_segments(journal, from_s, to_s)
    kept = [each for each in (_until(segment, to_s) for segment in segments) if each.ticks]
    if others:
        left_out = f"{others} of {others + len(segments)} recorded segments are of another version of Themis"
        if not kept:
            raise EnvironmentCheckError(f"{flags.journal}: {left_out}. Fix: replay them with the version that recorded them")
        sys.stderr.write(f"{left_out} and left out\n")
    if not kept:
        words = f"{moment(span[0], SystemClock().now_s())} to {moment(span[1], SystemClock().now_s())}"
        raise SettingsError(f"--from, --to: nothing was recorded then: expected times from {words}")
    return kept


def _until(segment: Segment, to_s: float) -> Segment:
    """A segment without the ticks after a time. Those before `--from` stay: the engine's state is known at the beginning alone."""
    return replace(segment, ticks=tuple(tick for tick in segment.ticks if tick.snapshot.at_s <= to_s))


def _time(text: str | None, flag: str, end_s: float, default_s: float) -> float:
    return default_s if text is None else parse_moment(text, flag, end_s, "the recording's end")


def _slos_ms(texts: Sequence[str], config: ThemisConfig) -> dict[str, float]:
    names, slos_ms = [pipeline.name for pipeline in config.pipelines], dict[str, float]()
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            slo_ms = float(value)
        except ValueError:
            slo_ms = 0.0
        if name not in names or not 0.0 < slo_ms < float("inf"):
            raise SettingsError(f"--slo: {text} is invalid: expected PIPELINE=MS with one of {', '.join(names)}, such as {names[0]}=200")
        slos_ms[name] = slo_ms
    return slos_ms


def _policy(name: str | None) -> str | None:
    allowed = [policy.value for policy in PolicyName]
    if name is not None and name not in allowed:
        raise SettingsError(f"--policy: {name} is invalid: expected {', '.join(allowed)}")
    return name


def _changes(journal: JournalReader, segments: Sequence[Segment]) -> int:
    """The changes that were carried out in the recorded time."""
    span = (segments[0].ticks[0].snapshot.at_s, segments[-1].ticks[-1].snapshot.at_s)
    query = "select count(*) from outcomes where ended_at_s >= ? and ended_at_s <= ? and outcome = 'done'"
    return int(journal.rows(query, span)[0][0])


def _accounts(segments: Sequence[Segment], slos_ms: Mapping[str, float], policy: str | None, changes: int) -> list[Account]:
    """What was measured, what the simulator makes of the recorded settings, and what of the others."""
    segments = _newest_stretch(segments)
    config = segments[-1].config
    snapshots = [tick.snapshot for segment in segments for tick in segment.ticks]
    usage, traffic = _minutes(segments)
    start_s, duration_s = snapshots[0].at_s, snapshots[-1].at_s - snapshots[0].at_s
    if duration_s < MIN_STRETCH_S:
        raise SettingsError(f"{duration_s:.0f} s of recorded time are too few: expected at least {MIN_STRETCH_S:g} s without a gap")
    stretch = Stretch(start_s, duration_s, arrival_times(traffic, start_s, duration_s), first_servers(snapshots[0], config))
    servers, instances = counts_over_time(snapshots)
    measured = replace(measured_account("measured", usage, traffic, changes), servers=servers, instances=instances)
    words = [f"slo {name}={slo_ms:g}" for name, slo_ms in slos_ms.items()] + ([f"policy {policy}"] if policy is not None else [])
    return [
        measured,
        simulated_account("simulated", config, stretch),
        simulated_account(", ".join(words), with_changes(config, slos_ms, policy), stretch),
    ]


def _newest_stretch(segments: Sequence[Segment]) -> list[Segment]:
    """The last segments without a gap between them."""
    kept = [segments[-1]]
    for segment in reversed(segments[:-1]):
        if kept[0].ticks[0].snapshot.at_s - segment.ticks[-1].snapshot.at_s > MAX_TICK_S:
            break
        kept.insert(0, segment)
    return kept


def _minutes(segments: Sequence[Segment]) -> tuple[list[UsageMinute], list[TrafficMinute]]:
    joined, counter, usage, traffic = Minutes(), RequestCounter(), list[UsageMinute](), list[TrafficMinute]()
    ended = [
        joined.take(tick.snapshot, segment.config, counter.take(tick.snapshot, segment.config.pipelines))
        for segment in segments
        for tick in segment.ticks
    ]
    for minute in (*ended, joined.end(segments[-1].config)):
        if minute is not None:
            usage.append(minute[0])
            traffic.extend(minute[1])
    return usage, traffic


def _print_replayed(replayed: Replayed, *, as_json: bool) -> None:
    if as_json:
        write_line(json.dumps(asdict(replayed)))
        return
    now_s = SystemClock().now_s()
    span = f"{replayed.ticks:,} ticks from {moment(replayed.from_s, now_s)} to {moment(replayed.to_s, now_s)}"
    if replayed.first is None:
        write_line(f"{span}: every decision and plan is the recorded one, byte for byte")
        return
    write_line(f"{span}: {replayed.differing:,} differ; the first, of {moment(replayed.first.at_s, now_s)}:")
    write_line(replayed.first.sentence)


def _print_accounts(accounts: Sequence[Account], *, as_json: bool) -> None:
    if as_json:
        write_line(json.dumps([asdict(account) for account in accounts]))
        return
    console = TerminalConsole(soft_wrap=True)
    table = Table("", "requests", "late", "server h", "instance h", "cost", "changes", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for each in accounts:
        late = "–" if each.late is None else f"{each.late:.2%}"
        hours = (f"{each.server_hours:.2f}", f"{each.instance_hours:.2f}")
        changes = "–" if each.changes is None else str(each.changes)
        table.add_row(each.name, f"{each.requests:,}", late, *hours, f"{each.cost:,.0f}", changes)
    console.print(table)
    spans = Table("at", *(each.name for each in accounts), title="servers, instances", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for number in range(BINS):
        counts = [f"{each.servers[number]:.1f}, {each.instances[number]:.1f}" for each in accounts]
        spans.add_row(f"{number / BINS:.0%}", *counts)
    console.print(spans)
