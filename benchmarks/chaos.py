"""Seeded faults on real Triton, Envoy and the sidecar under load: `scripts/chaos --seed 3 --minutes 3 --json`.

The last line is `{"requests", "failed", "failed_outside_envoy_death", "orphans", "seconds_to_slo_p99", "by_fault"}`. Exit code 1: requests
failed outside the time in which Envoy itself was dead, or processes were left over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from chaos_faults import FAULTS
from chaos_world import SLO_MS, STAGES, World, running
from common import RESULTS, commit, write_result
from failure_causes import Rows, causes, in_envoy_death, log_events, read_rows

from themis_triton.adapters.process_end import owned_processes
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.results import OK
from themis_triton.load.traces import TraceOptions

RATE_RPS = 24.0
SETTLE_S, GAP_S, QUIET_END_S = 12.0, (5.0, 9.0), 20.0
CALM_S = 30.0
WINDOW_S = 3.0
MAX_LATE = 0.01
CRASH = b"boost::interprocess::lock_exception"
"""What Triton's Python backend ends with when its processes wait for the processor for too long."""


@dataclass(slots=True)
class Made:
    """A fault that was made: seconds from the load's start."""

    name: str
    began_s: float
    ended_s: float
    failed: int = 0
    failed_outside_envoy_death: int = 0
    seconds_to_slo: float | None = None


@dataclass(slots=True)
class Outcome:
    """The result of one seed. `triton_crashes`: servers that a starved machine ended, which Triton's Python backend does not survive."""

    seed: int
    requests: int
    failed: int
    failed_outside_envoy_death: int
    orphans: int
    seconds_to_slo_p99: float | None
    by_fault: dict[str, dict[str, Any]]
    envoy_death_s: dict[str, list[float]] = field(default_factory=dict)
    causes: dict[str, dict[str, Any]] = field(default_factory=dict)
    never_calm: int = 0
    load_average: float = 0.0
    triton_crashes: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing was lost but in Envoy's own death, and nothing is left over."""
        return not (self.failed_outside_envoy_death or self.orphans or self.never_calm)


async def make_faults(world: World, names: Sequence[str], until_s: float, start_s: float) -> tuple[list[Made], int]:
    """Make faults, one after the other, each once the one before is mended; also the number after which calm did not return."""
    loop, made, never = asyncio.get_running_loop(), list[Made](), 0
    await asyncio.sleep(SETTLE_S)
    order: list[str] = []
    while loop.time() < until_s - QUIET_END_S:
        if not order:
            order = world.random.sample(list(names), len(names))
        name, began_s = order.pop(), loop.time()
        await FAULTS[name](world)
        made.append(Made(name, began_s - start_s, loop.time() - start_s))
        print(f"{began_s - start_s:6.1f} s  {name}  {loop.time() - began_s:.1f} s", file=sys.stderr, flush=True)
        if not await world.until(_is_calm, CALM_S):
            never += 1
            status = await world.status()
            print(f"        no calm: {status.get('sentence')}; {status.get('faults')}", file=sys.stderr, flush=True)
        await asyncio.sleep(world.random.uniform(*GAP_S))
    return made, never


def _is_calm(status: dict[str, Any]) -> bool:
    serving = [server for server in status["servers"] if server["phase"] == "serving" and len(server["models"]) == len(STAGES)]
    evidence = status["pipelines"][0]["evidence"]
    return len(serving) == len(status["servers"]) > 1 and not status["faults"] and evidence is not None and not status["tick_error"]


async def run(folder: Path, seed: int, minutes: float, names: Sequence[str]) -> Outcome:
    """One seed."""
    loop = asyncio.get_running_loop()
    async with running(folder, seed) as world:
        rows_file = folder / "rows.npz"
        load = PipelineLoad("video", STAGES, SLO_MS, TraceOptions(rate_rps=RATE_RPS, duration_s=round(60 * minutes)))
        async with LoadProcess(LoadOptions(world.settings["envoy"]["grpc_listen"], (load,), seed=seed, out=rows_file)) as process:
            start_s, start_unix_s = loop.time(), time.time()
            faults = asyncio.create_task(make_faults(world, names, start_s + 60 * minutes, start_s))
            async for _ in process.seconds():
                pass
            made, never = await faults
        await world.until(_is_calm, CALM_S)
        orphans = await asyncio.to_thread(world.orphans, await world.status())
        windows = [(fault, began - start_s, back - start_s) for fault, began, back in world.envoy_deaths]
        state = world.state
    left = [process.pid for process in await asyncio.to_thread(owned_processes, state)]
    rows = read_rows(rows_file, "video")
    outcome = judge(seed, rows, made, windows, len(orphans) + len(left))
    events = list(log_events(folder / "sidecar.log", start_unix_s))
    outcome.causes = causes(rows, windows, events)
    outcome.never_calm, outcome.load_average = never, round(os.getloadavg()[1], 1)
    outcome.triton_crashes = await asyncio.to_thread(_crashes, folder)
    return outcome


def _crashes(folder: Path) -> int:
    return sum(CRASH in log.read_bytes() for log in folder.glob("*/logs/*.log"))


def judge(seed: int, rows: Rows, made: list[Made], windows: Sequence[tuple[str, float, float]], orphans: int) -> Outcome:
    """Each failed request counts for the fault that began last before it ended."""
    ends = [*(each.began_s for each in made[1:]), float("inf")]
    for each, next_s in zip(made, ends, strict=True):
        each.seconds_to_slo = seconds_to_slo(rows, each.ended_s, next_s)
    outside = 0
    for index in np.flatnonzero(rows.error != OK):
        dead = in_envoy_death(rows, index, windows)
        outside += not dead
        cause = next((each for each in reversed(made) if each.began_s <= rows.ended_s[index]), None)
        if cause is not None:
            cause.failed += 1
            cause.failed_outside_envoy_death += not dead
    returned = [each.seconds_to_slo for each in made if each.seconds_to_slo is not None]
    return Outcome(
        seed,
        int(rows.error.size),
        int(np.count_nonzero(rows.error != OK)),
        outside,
        orphans,
        round(float(np.percentile(returned, 99)), 2) if returned else None,
        by_fault(made),
        {name: [round(back - began, 2) for fault, began, back in windows if fault == name] for name, _, _ in windows},
    )


def seconds_to_slo(rows: Rows, end_s: float, next_s: float) -> float | None:
    """From a fault's end until requests meet the SLO for a while; None when the next fault came first."""
    bad = (rows.error != OK) | (rows.latency_ms > SLO_MS)
    last_s = min(next_s, float(rows.intended_s.max(initial=0.0)))
    for at_s in np.arange(end_s, last_s - WINDOW_S, 0.1):
        inside = (rows.intended_s >= at_s) & (rows.intended_s < at_s + WINDOW_S)
        if inside.any() and np.count_nonzero(bad & inside) <= max(1, MAX_LATE * np.count_nonzero(inside)):
            return round(float(at_s - end_s), 2)
    return None


def by_fault(made: Sequence[Made]) -> dict[str, dict[str, Any]]:
    """The figures of each kind of fault."""
    table: dict[str, dict[str, Any]] = {}
    for each in made:
        row = table.setdefault(each.name, {"made": 0, "failed": 0, "failed_outside_envoy_death": 0, "seconds_to_slo_max": 0.0})
        row["made"] += 1
        row["failed"] += each.failed
        row["failed_outside_envoy_death"] += each.failed_outside_envoy_death
        row["seconds_to_slo_max"] = max(row["seconds_to_slo_max"], each.seconds_to_slo or 0.0)
    return table


def save(outcome: Outcome, minutes: float) -> None:
    """Put the outcome into `results/chaos.json`, in place of an earlier one of its seed."""
    path = RESULTS / "chaos.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    runs = [each for each in earlier if each["seed"] != outcome.seed] + [{"commit": commit(), "minutes": minutes, **asdict(outcome)}]
    write_result("chaos", {"runs": sorted(runs, key=lambda each: int(each["seed"]))})


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which faults come, and when")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the load")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--out", type=Path, help="folder for logs and rows; by default one that goes when nothing failed")
    parser.add_argument("--json", action="store_true", help="print the result as the last line")
    parser.add_argument("--save", action="store_true", help="put the result into benchmarks/results/chaos.json")
    flags = parser.parse_args()
    names = flags.faults.split(",")
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        parser.error(f"--faults: {', '.join(unknown)} is unknown; allowed are {', '.join(FAULTS)}")
    folder = flags.out or Path(tempfile.mkdtemp(prefix="themis-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcome = asyncio.run(run(folder, flags.seed, flags.minutes, names))
    if flags.save:
        save(outcome, flags.minutes)
    if flags.json:
        print(json.dumps(asdict(outcome)))
    else:
        for name, row in outcome.by_fault.items():
            print(f"{name:20} {row}")
        print({key: value for key, value in asdict(outcome).items() if key != "by_fault"})
    if not outcome.good:
        print(f"logs: {folder}", file=sys.stderr)
        return 1
    if flags.out is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
