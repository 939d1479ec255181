"""`themis compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from themis_triton.commands.compared_runs import ComparedLoad, ComparedRun, RunFigures, compared_run, references_like
from themis_triton.commands.compared_seeds import pooled
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.commands.warm_command import prepare_kernels
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyName
from themis_triton.core.server_kind import kind_words
from themis_triton.demo.folder import check_folder
from themis_triton.jit import Group
from themis_triton.load.traces import load_trace
from themis_triton.report.bars import BarFigure, draw_bars
from themis_triton.report.pictures import draw_comparison
from themis_triton.report.style import require_matplotlib
from themis_triton.settings import load_settings


@dataclass(frozen=True, slots=True)
class CompareFlags:
    """The options of the command line."""

    load: ComparedLoad
    policies: str
    out: Path
    seeds: int = 1


def compare_command(flags: CompareFlags, *, as_json: bool) -> list[dict[str, Any]]:
    """Run every policy live and simulated, one after the other. Prints a table, or JSON rows as the last line, and returns the rows.

    `out` contains one folder per policy and seed (settings, logs, every request), each policy's results and picture, and pictures of all
    policies. With several seeds all policies run under one of them before the next, so that a busy machine affects all alike.
    """
    policies = live_policies(flags.policies)
    load = flags.load.named()
    load_trace(load.trace, load.seed)
    require_matplotlib()
    folders = {(policy, seed): _folder(flags, policy, seed) for seed in _seeds(flags) for policy in policies}
    _check_out(flags.out, list(folders.values()))
    prepare_kernels(tuple(Group))  # the simulations and the clairvoyant bound run in this process
    by_policy = _all_runs(load, folders)
    runs = [pooled(by_policy[policy]) for policy in policies]
    for run in runs:
        (flags.out / f"{run.policy}.json").write_text(json.dumps(run.as_plain()) + "\n")
    rows = [run.row() | {"runs": [each.row() for each in by_policy[PolicyName(run.policy)]]} for run in runs]
    console = TerminalConsole(soft_wrap=True)
    if as_json:
        console.file.write(json.dumps(rows, allow_nan=False) + "\n")
    else:
        console.print(table(runs))
    if warning := busy_words(runs):
        TerminalConsole(stderr=True).print(warning, markup=False)
    draw(runs, load.title, flags.out)
    if not as_json:
        console.print(f"Pictures and figures: {flags.out.resolve()}", markup=False)
    return rows


def _seeds(flags: CompareFlags) -> range:
    """SettingsError for a number of seeds that is not positive."""
    if flags.seeds < 1:
        raise SettingsError(f"--seeds: {flags.seeds} is invalid: expected at least 1")
    return range(flags.load.seed, flags.load.seed + flags.seeds)


def _folder(flags: CompareFlags, policy: PolicyName, seed: int) -> Path:
    return flags.out / (policy.value if flags.seeds == 1 else f"{policy.value}-seed-{seed}")


def _all_runs(load: ComparedLoad, folders: Mapping[tuple[PolicyName, int], Path]) -> dict[PolicyName, list[ComparedRun]]:
    """The runs of each policy, in the order of the folders; the references are simulated once for each seed."""
    words, runs = TerminalConsole(stderr=True), dict[PolicyName, list[ComparedRun]]()
    references: dict[int, dict[str, RunFigures]] = {}
    for number, ((policy, seed), folder) in enumerate(folders.items(), 1):
        seeded = replace(load, seed=seed)
        words.rule(f"{number} of {len(folders)}: {policy.value}, seed {seed}, live")
        run = compared_run(seeded, policy, folder)
        if seed not in references:
            references[seed] = references_like(load_settings(folder / "themis.yaml"), seeded, [name for name, _ in folders])
        runs.setdefault(policy, []).append(replace(run, references=references[seed]))
        words.print(f"simulated: {run.simulated.violations:.3%} outside the SLO, cost {run.cost_error:+.1%} of the measured", markup=False)
    return runs


def live_policies(text: str) -> list[PolicyName]:
    """The distinct policies of a comma-separated list. SettingsError names a policy that does not exist or cannot run live."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    allowed = [policy.value for policy in PolicyName if policy.runs_live]
    for name in names:
        if name not in allowed:
            raise SettingsError(f"--policies: {name} cannot run live: expected {', '.join(allowed)}")
    if not names:
        raise SettingsError(f"--policies: the list is empty: expected {', '.join(allowed)}")
    return [PolicyName(name) for name in names]


def _check_out(out: Path, folders: Sequence[Path]) -> None:
    """SettingsError if a run's folder is unusable, before the first run starts."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out: {out} is a file: expected a folder")
    for folder in folders:
        check_folder(folder)


def table(runs: Sequence[ComparedRun]) -> Table:
    """Two rows per policy, measured and simulated, and one for each reference."""
    requests = ", ".join(sorted({f"{run.measured.requests:,}" for run in runs}))
    title = f"{requests} requests for each policy, inside {runs[0].slo_ms:g} ms"
    names = ("policy", "", "failed", "violations", "p50 ms", "p99 ms", "cost", "cost error")
    caption = "\n".join([orders(runs), *filter(None, [interval_words(runs), host_words(runs)]), *account_words(runs)])
    shown = Table(*names, title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    shown.pad_edge, shown.collapse_padding = False, True
    for column in shown.columns:
        column.no_wrap = True
    for run in runs:
        shown.add_row(run.policy, "measured", *_figures(run.measured))
        shown.add_row("", "simulated", *_figures(run.simulated), f"{run.cost_error:+.1%}", end_section=True)
    for name, figures in runs[0].references.items():
        shown.add_row(name, "simulated", *_figures(figures))
    return shown


def interval_words(runs: Sequence[ComparedRun]) -> str:
    """The measured violations with their 95 % intervals, where there are several seeds."""
    known = [f"{run.policy} {run.measured.violations:.3%} ± {run.violations_error:.3%}" for run in runs if run.violations_error is not None]
    return f"violations of {runs[0].seeds} seeds, with 95 % intervals: {', '.join(known)}" if known else ""


def host_words(runs: Sequence[ComparedRun]) -> str:
    """How many cores of the machine were busy in the live runs."""
    known = [f"{run.policy} {run.host.busy_cores:.1f}" for run in runs if run.host.busy_cores is not None]
    return f"busy cores of {runs[0].host.cores}, all processes: {', '.join(known)}" if known else ""


def account_words(runs: Sequence[ComparedRun]) -> list[str]:
    """What each policy's servers were there for, measured and simulated, so that a difference in cost can be explained."""
    return [
        f"server-seconds of {run.policy}: {kind_words(run.measured.server_seconds_by_kind)}; "
        f"simulated {kind_words(run.simulated.server_seconds_by_kind)}; "
        f"instance-seconds: {run.measured.instance_seconds:,.0f}; simulated {run.simulated.instance_seconds:,.0f}"
        for run in runs
        if run.measured.server_seconds_by_kind
    ]


def busy_words(runs: Sequence[ComparedRun]) -> str:
    """A warning where the machine was too busy for what was measured; else empty."""
    busy = [f"{run.policy} ({run.host.busy_cores:.1f} of {run.host.cores} cores)" for run in runs if run.host.too_busy]
    if not busy:
        return ""
    return (
        f"warning: the machine was busy in the runs of {', '.join(busy)}: measured latencies and violations are pessimistic. "
        "Fix: end other work on this machine, or lower the load with --scale, and run again"
    )


def cells(measured: RunFigures, simulated: RunFigures) -> list[str]:
    """Failed, violations, p50, p99 and cost as `measured / simulated`."""
    pairs = [[_figures(run)[column] for run in (measured, simulated)] for column in range(5)]
    return [" / ".join(pair) for pair in pairs]


def _figures(run: RunFigures) -> list[str]:
    percentiles = ["–" if value is None else f"{value:.0f}" for value in (run.p50_ms, run.p99_ms)]
    return [f"{run.failed}", f"{run.violations:.3%}", *percentiles, f"{run.cost:,.0f}"]


def orders(runs: Sequence[ComparedRun]) -> str:
    """The policies ordered by cost and by late requests, measured and simulated."""
    return f"by cost: {_order(runs, 'cost')}; by late requests: {_order(runs, 'violations')}"


def _order(runs: Sequence[ComparedRun], key: str) -> str:
    measured, simulated = (_ranked({run.policy: getattr(getattr(run, side), key) for run in runs}) for side in ("measured", "simulated"))
    return measured + ("; simulated the same" if measured == simulated else f"; simulated {simulated}")


def _ranked(values: dict[str, float]) -> str:
    """Names in ascending order of their values; names with equal values are joined by `=`."""
    groups = {value: " = ".join(name for name, other in values.items() if other == value) for value in sorted(values.values())}
    return ", ".join(groups.values())


def draw(runs: Sequence[ComparedRun], title: str, out: Path) -> None:
    """Draw one picture per policy with both runs, and one bar chart of all policies."""
    for run in runs:
        both = [run.measured_series, run.simulated_series]
        draw_comparison(both, run.slo_ms, f"{title}: {run.policy}, measured and simulated", out / f"{run.policy}.png")
    draw_summary(runs, title, out / "summary.png")


def draw_summary(runs: Sequence[ComparedRun], title: str, path: Path) -> None:
    """Draw violations, p50, p99 and cost of each policy, measured and simulated."""
    measured, simulated = [run.measured for run in runs], [run.simulated for run in runs]

    def figure(name: str, unit: str, form: str, key: str, limit: float | None = None, scale: float = 1.0) -> BarFigure:
        rows = [[None if getattr(run, key) is None else scale * getattr(run, key) for run in side] for side in (measured, simulated)]
        return BarFigure(name, unit, form, rows[0], rows[1], limit)

    figures = [
        figure("Requests outside the SLO", "%", "{:.3f}", "violations", scale=100.0),
        figure("p50 latency", "ms", "{:.0f}", "p50_ms"),
        figure("p99 latency", "ms", "{:.0f}", "p99_ms", runs[0].slo_ms),
        figure("Cost", "in the prices' unit", "{:,.0f}", "cost"),
    ]
    failed = ", ".join(f"{run.policy} {run.measured.failed}" for run in runs)
    draw_bars([run.policy for run in runs], figures, f"{title}, live and simulated", f"failed requests, live: {failed}", path)
