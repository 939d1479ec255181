"""`themis simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from themis_triton.core.config import PolicyName, ThemisConfig
from themis_triton.core.errors import MissingPartError, SettingsError
from themis_triton.load.traces import Trace, TraceOptions, arrivals, load_trace
from themis_triton.report.series import RunSeries
from themis_triton.settings import load_settings
from themis_triton.sim.run import SimOptions, simulate
from themis_triton.sim.world import SimWorld
from themis_triton.solver.surface import FloatArray


@dataclass(frozen=True, slots=True)
class SimulateFlags:
    """What stood on the command line. `pipelines` empty: the settings' first. `out` None: no pictures."""

    config: Path
    trace: TraceOptions
    policies: str
    seeds: int = 1
    cold_start_s: float | None = None
    pipelines: tuple[str, ...] = ()
    jobs: int = 1
    out: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """One policy under one seed."""

    policy: str
    seed: int
    latency_ms: FloatArray
    violated: int
    failed: int
    cost: float
    server_seconds: float
    instance_seconds: float
    max_servers: int
    series: RunSeries


def simulate_command(flags: SimulateFlags, *, as_json: bool) -> list[dict[str, Any]]:
    """Run every policy under every seed; prints a table, or as the last line of standard output the rows as JSON, and returns them."""
    _check(flags)
    config = chosen(load_settings(flags.config), flags.pipelines)
    policies = _policies(flags.policies)
    tasks = [(policy, seed) for policy in policies for seed in range(flags.seeds)]
    runs = _all_runs(config, flags, tasks, Console(stderr=True))
    rows = [_row(policy.value, [run for run in runs if run.policy == policy.value]) for policy in policies]
    console = Console(soft_wrap=True)
    if flags.out is not None:
        _draw(runs, config, flags, flags.out)
    if as_json:
        console.file.write(json.dumps(rows) + "\n")
    else:
        console.print(_table(rows))
    return rows


def chosen(config: ThemisConfig, names: Sequence[str]) -> ThemisConfig:
    """The settings with just these pipelines (by default the first) and their models. SettingsError for an unknown one."""
    known = {pipeline.name: pipeline for pipeline in config.pipelines}
    for name in names:
        if name not in known:
            raise SettingsError(f"--pipeline {name}: not a pipeline of the settings; allowed are {', '.join(known)}")
    pipelines = tuple(known[name] for name in names) or config.pipelines[:1]
    stages = {stage for pipeline in pipelines for stage in pipeline.stages}
    return replace(config, pipelines=pipelines, models={name: model for name, model in config.models.items() if name in stages})


def _check(flags: SimulateFlags) -> None:
    for flag, found, least in (("--seeds", flags.seeds, 1), ("--jobs", flags.jobs, 1), ("--cold-start", flags.cold_start_s or 0, 0)):
        if not found >= least:
            raise SettingsError(f"{flag} {found}: allowed are numbers of at least {least}")


def _policies(text: str) -> list[PolicyName]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    allowed = [policy.value for policy in PolicyName]
    for name in names:
        if name not in allowed:
            raise SettingsError(f"--policies {text}: there is no policy '{name}'; allowed are {', '.join(allowed)}")
    if not names:
        raise SettingsError(f"--policies: found nothing; allowed are {', '.join(allowed)}")
    return [PolicyName(name) for name in dict.fromkeys(names)]


def _all_runs(config: ThemisConfig, flags: SimulateFlags, tasks: list[tuple[PolicyName, int]], console: Console) -> list[SimulatedRun]:
    runs = []
    with Progress(console=console, transient=True) as progress:
        shown = progress.add_task("simulating", total=len(tasks))
        for run in _mapped(partial(_run, config, flags), tasks, flags.jobs):
            runs.append(run)
            progress.update(shown, advance=1, description=f"{run.policy}, seed {run.seed}")
    return runs


def _mapped(one: partial[SimulatedRun], tasks: list[tuple[PolicyName, int]], jobs: int) -> Iterator[SimulatedRun]:
    if jobs == 1:
        yield from map(one, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, tasks)


def _run(config: ThemisConfig, flags: SimulateFlags, task: tuple[PolicyName, int]) -> SimulatedRun:
    policy, seed = task
    trace = load_trace(flags.trace, seed)
    world = SimWorld(cold_start_s=flags.cold_start_s)
    result = simulate(config, _arrivals(config, trace, seed), trace.duration_s, SimOptions(seed=seed, policy=policy, world=world))
    return SimulatedRun(
        policy=policy.value,
        seed=seed,
        latency_ms=np.concatenate([run.latency_ms[~run.failed & np.isfinite(run.latency_ms)] for run in result.pipelines]),
        violated=sum(int(np.count_nonzero(run.violated)) for run in result.pipelines),
        failed=result.failed,
        cost=result.cost,
        server_seconds=result.server_seconds,
        instance_seconds=result.instance_seconds,
        max_servers=result.max_servers,
        series=result.series(),
    )


def _arrivals(config: ThemisConfig, trace: Trace, seed: int) -> dict[str, FloatArray]:
    """The first pipeline's are those of `themis load` with that seed; each further one draws its own."""
    seeds: list[int | tuple[int, ...]] = [seed, *((seed, number) for number in range(1, len(config.pipelines)))]
    return {pipeline.name: arrivals(trace, each) for pipeline, each in zip(config.pipelines, seeds, strict=True)}


def _row(policy: str, runs: list[SimulatedRun]) -> dict[str, Any]:
    """All seeds together: shares and percentiles over all requests, costs as means over the seeds."""
    latency_ms = np.concatenate([run.latency_ms for run in runs])
    failed = sum(run.failed for run in runs)
    requests = latency_ms.size + failed
    return {
        "policy": policy,
        "seeds": len(runs),
        "requests": requests,
        "violations": sum(run.violated for run in runs) / max(1, requests),
        "p50_ms": float(np.percentile(latency_ms, 50)) if latency_ms.size else None,
        "p99_ms": float(np.percentile(latency_ms, 99)) if latency_ms.size else None,
        "cost": float(np.mean([run.cost for run in runs])),
        "failed": failed,
        "server_seconds": float(np.mean([run.server_seconds for run in runs])),
        "instance_seconds": float(np.mean([run.instance_seconds for run in runs])),
        "max_servers": max(run.max_servers for run in runs),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("policy", "requests", "failed", "violations", "p50 ms", "p99 ms", "cost", "server-s")
    table.columns[0].no_wrap = True
    for row in rows:
        percentiles = [f"{row[key]:.0f}" if row[key] is not None else "–" for key in ("p50_ms", "p99_ms")]
        sums = [f"{row[key]:,.0f}" for key in ("cost", "server_seconds")]
        table.add_row(row["policy"], f"{row['requests']:,}", str(row["failed"]), f"{row['violations']:.3%}", *percentiles, *sums)
    return table


def _draw(runs: list[SimulatedRun], config: ThemisConfig, flags: SimulateFlags, out: Path) -> None:
    """Pictures of the first seed: one a policy, and all of them side by side."""
    try:
        from themis_triton.report.pictures import draw_comparison, draw_run  # noqa: PLC0415 - the extra may not be installed
    except ImportError as error:
        raise MissingPartError(f"--out {out}: pictures need matplotlib ({error}); install themis-triton[report]") from error
    out.mkdir(parents=True, exist_ok=True)
    first, pipeline = [run for run in runs if run.seed == 0], config.pipelines[0]
    for run in first:
        title = f"{pipeline.name}, {flags.trace.source}: {run.policy}, simulated"
        draw_run(run.series, pipeline.slo_ms, title, out / f"simulated-{run.policy}.png")
    title = f"{pipeline.name} under {flags.trace.source}, simulated"
    draw_comparison([run.series for run in first], pipeline.slo_ms, title, out / "simulated.png")
