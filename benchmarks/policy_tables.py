"""Rows, Markdown and pictures of what `policies.py` simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from common import shortened
from policy_cases import Outcome
from policy_results import Result, differences

from themis_triton.commands.compared_seeds import halfwidth

mpl.use("Agg")
from matplotlib import pyplot as plt

INFEASIBLE = " †"
COLUMNS = ("policy", "violations", "by pipeline", "p50 ms", "p99 ms", "longest s", "cost", "of clairvoyant", "failed")


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a setting and variant, in their order: by pipeline over all seeds and loads together, then the mean of the pipelines."""
    keys = dict.fromkeys((outcome.case.setting, outcome.case.variant.label) for outcome in outcomes)
    chosen = {key: [o for o in outcomes if (o.case.setting, o.case.variant.label) == key] for key in keys}
    return [_row(setting, label, found) for (setting, label), found in chosen.items()]


def _row(setting: str, label: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    names = dict.fromkeys(o.case.pipeline for o in outcomes)
    by_pipeline = {name: _pipeline_row([o for o in outcomes if o.case.pipeline == name]) for name in names}
    return {
        "setting": setting,
        "policy": label,
        "violations": _mean(row["violations"] for row in by_pipeline.values()),
        "violations_error": _error(outcomes),
        "cost_vs_clairvoyant": _mean(row["cost_vs_clairvoyant"] for row in by_pipeline.values()),
        "failed": sum(row["failed"] for row in by_pipeline.values()),
        "violations_by_load": _by_load(outcomes),
        "pipelines": by_pipeline,
    }


def _error(outcomes: Sequence[Outcome]) -> float | None:
    """Half the width of the 95 % interval of the mean over the seeds; None for a single seed."""
    seeds = sorted({o.case.seed for o in outcomes})
    return halfwidth([_mean(o.run.violated / o.run.requests for o in outcomes if o.case.seed == seed) for seed in seeds])


def _by_load(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The mean over the runs under each trace."""
    loads = dict.fromkeys(o.case.load for o in outcomes)
    return {load: _mean(o.run.violated / o.run.requests for o in outcomes if o.case.load == load) for load in loads}


def _pipeline_row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    runs = [outcome.run for outcome in outcomes]
    latency_ms = np.concatenate([run.latency_ms for run in runs])
    return {
        "runs": len(runs),
        "requests": sum(run.requests for run in runs),
        "violations": sum(run.violated for run in runs) / sum(run.requests for run in runs),
        "worst_run_violations": max(run.violated / run.requests for run in runs),
        "p50_ms": round(float(np.percentile(latency_ms, 50)), 1),
        "p99_ms": round(float(np.percentile(latency_ms, 99)), 1),
        "longest_ms": round(float(latency_ms.max()), 1),
        "mean_cost": round(_mean(run.mean_cost for run in runs), 2),
        "cost_vs_clairvoyant": sum(run.cost for run in runs) / sum(run.bound_cost for run in runs),
        "bound_infeasible_s": sum(run.bound_infeasible_s for run in runs),
        "max_servers": max(run.max_servers for run in runs),
        "failed": sum(run.failed for run in runs),
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def markdown(title: str, notes: str, result: Result) -> str:
    """A table a setting; figures by pipeline stand in the order video, sentiment, nlp."""
    text, rows = [f"# {title}", "", notes, ""], result.rows
    for setting in dict.fromkeys(row["setting"] for row in rows):
        text += [f"## {setting}", "", f"| {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"]
        text += [_line(row) for row in rows if row["setting"] == setting]
        text.append("")
    text += _provenance(result)
    if any(line.count(f"{INFEASIBLE} |") for line in text):
        text += [f"{INFEASIBLE.strip()} In some seconds no configuration carries the load: the ratio is too low.", ""]
    return "\n".join(text)


def _provenance(result: Result) -> list[str]:
    """Which rows ran at which commit, with which seeds and settings, where that differs."""
    groups: dict[str, dict[str, None]] = {}
    labels = [_ran_with(row, result) for row in result.rows]
    every = len({row["setting"] for row in result.rows})
    for row, label in zip(result.rows, labels, strict=True):
        same = sum(other["policy"] == row["policy"] and text == label for other, text in zip(result.rows, labels, strict=True))
        groups.setdefault(label, {})[row["policy"] if same == every else f"{row['policy']} ({row['setting']})"] = None
    if len(groups) < 2:
        return []
    return [*(f"- {label}: {'; '.join(policies)}." for label, policies in groups.items()), ""]


def _ran_with(row: dict[str, Any], result: Result) -> str:
    """Commit, seeds, and the settings of policy themis that differ between rows."""
    settings = differences(result.settings)[row["settings"]] if "settings" in row else ("settings of themis not recorded",)
    return ", ".join((f"Commit {shortened(row['commit'])}, seeds: {row['seeds']}", *settings))


def _line(row: dict[str, Any]) -> str:
    parts = row["pipelines"].values()
    cells = [
        row["policy"],
        f"{row['violations']:.3%}" + ("" if row.get("violations_error") is None else f" ± {row['violations_error']:.3%}"),
        " / ".join(f"{part['violations']:.3%}" for part in parts),
        " / ".join(f"{part['p50_ms']:.0f}" for part in parts),
        " / ".join(f"{part['p99_ms']:.0f}" for part in parts),
        " / ".join(f"{part['longest_ms'] / 1000.0:.1f}" for part in parts),
        " / ".join(f"{part['mean_cost']:.0f}" for part in parts),
        f"{row['cost_vs_clairvoyant']:.3f}" + (INFEASIBLE if any(part["bound_infeasible_s"] for part in parts) else ""),
        str(row["failed"]),
    ]
    return f"| {' | '.join(cells)} |"


def draw_policies(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Violations over cost, a mark a policy, a panel a setting."""
    groups = list(dict.fromkeys(row["setting"] for row in rows))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    size = (max(8.0, 5.0 * columns), 3.6 * lines + 1.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    labels = dict.fromkeys(row["policy"] for row in rows)
    marks_of = {label: (f"C{number % 10}", MARKERS[number % len(MARKERS)]) for number, label in enumerate(labels)}
    for axis, group in zip(axes.flat, groups, strict=False):
        for row in [row for row in rows if row["setting"] == group]:
            label, share = row["policy"], max(row["violations"], FLOOR)
            colour, marker = marks_of[label]
            axis.plot(row["cost_vs_clairvoyant"], share, marker, color=colour, label=label, markersize=8)
        axis.set(yscale="log", ylim=(FLOOR / 2, 1.0), title=group, xlabel="cost over the clairvoyant bound's", ylabel="outside the SLO")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(groups) :]:
        axis.set_visible(False)
    marks = {text: mark for axis in axes.flat for mark, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}; no violation is drawn as {FLOOR:g}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


FLOOR = 1e-5
MARKERS = ("o", "^", "s", "D")
"""As many as share no cycle with ten colours until the twentieth policy."""
