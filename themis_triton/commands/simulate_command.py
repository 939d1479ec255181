"""`themis simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from themis_triton.commands.simulated_runs import CLAIRVOYANT, SimulatedRun, WorldFlags, check_fit, check_world, row_of, simulated_run
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.warm_command import planning_groups, prepare_kernels
from themis_triton.compilation import use_kernel_cache
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.jit import Group
from themis_triton.load.traces import TraceOptions
from themis_triton.report.style import require_matplotlib
from themis_triton.settings import load_settings


@dataclass(frozen=True, slots=True)
class SimulateFlags:
    """The options of the command line. `pipelines` empty: the settings' first. `out` None: no pictures."""

    config: Path
    trace: TraceOptions
    policies: str
    seeds: int = 1
    pipelines: tuple[str, ...] = ()
    jobs: int = 1
    out: Path | None = None
    world: WorldFlags = field(default_factory=WorldFlags)
    seed: int = 0


def simulate_command(flags: SimulateFlags, *, as_json: bool) -> list[dict[str, Any]]:
    """Run every policy under every seed. Prints a table, or JSON rows as the last line of standard output, and returns the rows."""
    _check(flags)
    config = chosen(load_settings(flags.config), flags.pipelines)
    check_fit(flags.world, config)
    policies = _policies(flags.policies)
    tasks = [(policy, seed) for policy in policies for seed in range(flags.seed, flags.seed + flags.seeds)]
    prepare_kernels((*planning_groups(config), Group.SIMULATOR))
    runs = _all_runs(config, flags, tasks, TerminalConsole(stderr=True))
    rows = [row_of(policy, [run for run in runs if run.policy == policy]) for policy in policies]
    console = TerminalConsole(soft_wrap=True)
    if as_json:
        console.file.write(json.dumps(rows, allow_nan=False) + "\n")
    else:
        console.print(_table(rows))
    if flags.out is not None:
        _draw(runs, config, flags, flags.out)
    return rows


def chosen(config: ThemisConfig, names: Sequence[str]) -> ThemisConfig:
    """The settings with only these pipelines (default: the first) and their models. SettingsError for an unknown pipeline."""
    known = {pipeline.name: pipeline for pipeline in config.pipelines}
    for name in names:
        if name not in known:
            raise SettingsError(f"--pipeline: {name} is invalid: expected a pipeline of the settings: {', '.join(known)}")
    pipelines = tuple(known[name] for name in dict.fromkeys(names)) or config.pipelines[:1]
    stages = {stage for pipeline in pipelines for stage in pipeline.stages}
    return replace(config, pipelines=pipelines, models={name: model for name, model in config.models.items() if name in stages})


def _check(flags: SimulateFlags) -> None:
    for flag, value in (("--seeds", flags.seeds), ("--jobs", flags.jobs)):
        if value < 1:
            raise SettingsError(f"{flag}: {value} is invalid: expected at least 1")
    check_world(flags.world)
    if flags.out is not None:
        require_matplotlib()
        _make_folder(flags.out)


def _make_folder(out: Path) -> None:
    """Create the folder, before anything is simulated. SettingsError if it cannot be created."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out: {out} is a file: expected a folder, which is created if absent")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out: {out} cannot be created ({error.strerror or error}). Fix: name another folder") from error


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    allowed = [*(policy.value for policy in PolicyName), CLAIRVOYANT]
    for name in names:
        if name not in allowed:
            raise SettingsError(f"--policies: {name} is invalid: expected {', '.join(allowed)}")
    if not names:
        raise SettingsError(f"--policies: the list is empty: expected {', '.join(allowed)}")
    return list(dict.fromkeys(names))


def _all_runs(config: ThemisConfig, flags: SimulateFlags, tasks: list[tuple[str, int]], console: Console) -> list[SimulatedRun]:
    runs, drawn = [], flags.seed if flags.out is not None else None
    with Progress(console=console, transient=True) as progress:
        shown = progress.add_task("simulating", total=len(tasks))
        for run in _mapped(partial(simulated_run, config, flags.trace, flags.world, drawn), tasks, flags.jobs):
            runs.append(run)
            progress.update(shown, advance=1, description=f"{run.policy}, seed {run.seed}")
    return runs


def _mapped(one: partial[SimulatedRun], tasks: list[tuple[str, int]], jobs: int) -> Iterator[SimulatedRun]:
    if jobs == 1:
        yield from map(one, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=use_kernel_cache) as pool:
        yield from pool.map(one, tasks)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "policy", "requests", "failed", "violations", "p50 ms", "p99 ms", "cost/s", "of bound", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.columns[0].no_wrap = True
    infeasible_s = rows[0]["bound_infeasible_s"]
    if infeasible_s:
        table.caption = f"No configuration carries the load in {infeasible_s} s (all seeds): the cost of the bound is underestimated."
    for row in rows:
        percentiles = [_or_dash(row[key], ".0f") for key in ("p50_ms", "p99_ms")]
        costs = [f"{row['mean_cost']:,.1f}", _or_dash(row["cost_vs_clairvoyant"], ".2f")]
        outside = _or_dash(row["violations"], ".3%")
        table.add_row(row["policy"], f"{row['requests']:,}", str(row["failed"]), outside, *percentiles, *costs)
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _draw(runs: list[SimulatedRun], config: ThemisConfig, flags: SimulateFlags, out: Path) -> None:
    """Draw the first seed: one picture per policy, and one of all policies."""
    from themis_triton.report.pictures import draw_comparison, draw_run  # noqa: PLC0415 - the extra may not be installed

    # Draw the first run's rate: the bound's rate is the sum of all pipelines.
    first = sorted((run for run in runs if run.seed == flags.seed), key=lambda run: run.policy == CLAIRVOYANT)
    pipeline = config.pipelines[0]
    for run in [run for run in first if run.policy != CLAIRVOYANT]:
        title = f"{pipeline.name}, {flags.trace.name}: {run.policy}, simulated"
        draw_run(run.series, pipeline.slo_ms, title, out / f"simulated-{run.policy}.png")
    title = f"{pipeline.name} under {flags.trace.name}, simulated"
    draw_comparison([run.series for run in first], pipeline.slo_ms, title, out / "simulated.png")
