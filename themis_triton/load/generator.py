"""Open-loop load over gRPC: every request is sent at its intended time, whatever the latency of responses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np

from themis_triton.core.errors import SettingsError
from themis_triton.load.connection import open_stub, read_specs
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.requests import StageRequest, build_chain, wrong_answer
from themis_triton.load.results import (
    ERROR_NAMES,
    OK,
    UNFINISHED,
    WRONG_ANSWER,
    FloatArray,
    LoadReport,
    LoadResult,
    Messages,
    SecondStats,
    by_second,
    percentile_ms,
    summarise,
)
from themis_triton.load.traces import arrivals, load_trace

VARIANTS = 32
STOP_DRAIN_S = 2.0

OnStart = Callable[[int, int], None]
OnSecond = Callable[[SecondStats], None]


def ignore_start(_duration_s: int, _requests: int) -> None:
    """The default: ignore that the first request is about to be sent."""


def ignore_second(_stats: SecondStats) -> None:
    """The default: ignore live statistics."""


async def run_load(
    options: LoadOptions,
    on_start: OnStart = ignore_start,
    on_second: OnSecond = ignore_second,
    stop: asyncio.Event | None = None,
) -> tuple[LoadReport, tuple[LoadResult, ...]]:
    """The results of a run that sends all pipelines' requests concurrently.

    `on_start(duration_s, requests)` is called when the clock starts, `on_second` once a second for each pipeline. Setting `stop`
    ends the sending; requests in flight get `STOP_DRAIN_S` more. Raises SettingsError and ServerError before the first request.
    """
    _check_options(options)
    schedules, duration_s = _schedules(options)
    async with open_stub(options.address, options.connect_timeout_s, options.bearer_file) as stub:
        specs = await read_specs(stub, [model for pipeline in options.pipelines for model in pipeline.stages], options.connect_timeout_s)
        rng = np.random.default_rng((options.seed, VARIANTS))
        runs = [
            PipelineRun(
                pipeline,
                build_chain([specs[s] for s in pipeline.stages], VARIANTS, rng, options.shapes, options.inputs),
                intended_s,
                stub,
                options,
            )
            for pipeline, intended_s in zip(options.pipelines, schedules, strict=True)
        ]
        on_start(duration_s, sum(schedule.size for schedule in schedules))
        before = os.times()
        stopped = await _run_all(runs, duration_s, options, on_second, stop or asyncio.Event())
        after = os.times()
    results = tuple(run.result() for run in runs)
    report = LoadReport(
        duration_s=duration_s,
        summaries=tuple(summarise(result) for result in results),
        series=tuple(by_second(result, duration_s) for result in results),
        cpu_s=after.user + after.system - before.user - before.system,
        stopped_early=stopped,
    )
    return report, results


class PipelineRun:
    """One pipeline under load: sends on schedule, calls the stages in order, keeps one row per request."""

    def __init__(
        self,
        pipeline: PipelineLoad,
        chains: Sequence[Sequence[StageRequest]],
        intended_s: FloatArray,
        stub: Any,  # noqa: ANN401 - generated stubs have no types
        options: LoadOptions,
    ) -> None:
        self._pipeline = pipeline
        self._chains = chains
        self._intended_s = intended_s
        self._infer = stub.ModelInfer
        self._timeout_s = options.request_timeout_s
        self._metadata = tuple(pipeline.metadata.items())
        self._loop = asyncio.get_running_loop()
        self._latency_ms = np.zeros(intended_s.size)
        self._lateness_ms = np.zeros(intended_s.size)
        self._error = np.full(intended_s.size, UNFINISHED, dtype=np.uint8)
        self._message = np.zeros(intended_s.size, dtype=np.uint8)
        self._messages = Messages()
        self._first_messages: dict[str, str] = {}
        self._sent = 0
        self._reported = 0
        self._in_flight = 0
        self._ended: list[int] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def send_all(self, start_s: float, duration_s: int, group: asyncio.TaskGroup) -> None:
        """Start every request of the trace at its intended time; an overdue one is sent at once, never skipped."""
        for row, intended_s in enumerate(self._intended_s.tolist()):
            delay_s = start_s + intended_s - self._loop.time()
            if delay_s > 0.0:
                await asyncio.sleep(delay_s)
            self._sent += 1
            task = group.create_task(self._walk(row, start_s + intended_s))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        await asyncio.sleep(max(0.0, start_s + duration_s - self._loop.time()))

    def second(self, at_s: float) -> SecondStats:
        """Statistics since the last call."""
        ended, self._ended = np.array(self._ended, dtype=np.int64), []
        answered = self._latency_ms[ended[self._error[ended] == OK]]
        late = int(np.count_nonzero(answered > self._pipeline.slo_ms))
        failed = int(ended.size - answered.size)
        sent, self._reported = self._sent - self._reported, self._sent
        return SecondStats(
            pipeline=self._pipeline.name,
            at_s=at_s,
            sent=sent,
            ok=int(answered.size),
            failed=failed,
            violations=late + failed,
            in_flight=self._in_flight,
            p50_ms=percentile_ms(answered, 50.0),
            p99_ms=percentile_ms(answered, 99.0),
        )

    def give_up(self) -> None:
        """Cancel the requests in flight; they stay `unfinished`."""
        for task in self.tasks:
            task.cancel()

    def result(self) -> LoadResult:
        """The rows of all requests that were sent."""
        rows = slice(0, self._sent)
        return LoadResult(
            pipeline=self._pipeline.name,
            slo_ms=self._pipeline.slo_ms,
            intended_s=self._intended_s[rows],
            latency_ms=self._latency_ms[rows],
            error=self._error[rows],
            lateness_ms=self._lateness_ms[rows],
            message=self._message[rows],
            messages=self._messages.all,
            first_messages=dict(self._first_messages),
        )

    async def _walk(self, row: int, intended_at_s: float) -> None:
        self._lateness_ms[row] = max(0.0, self._loop.time() - intended_at_s) * 1000.0
        self._in_flight += 1
        code, message = UNFINISHED, "no response when the load ended"
        try:
            code, message = await self._walk_stages(self._chains[row % len(self._chains)], intended_at_s + self._timeout_s)
        except grpc.aio.AioRpcError as error:
            code, message = int(error.code().value[0]), str(error.details())
        finally:
            self._in_flight -= 1
            self._latency_ms[row] = (self._loop.time() - intended_at_s) * 1000.0
            self._error[row] = code
            self._ended.append(row)
            if code != OK:
                self._message[row] = self._messages.index(message)
                self._first_messages.setdefault(ERROR_NAMES[code], message)

    async def _walk_stages(self, chain: Sequence[StageRequest], deadline_s: float) -> tuple[int, str]:
        for request in chain:
            answer = await self._infer(request.message, timeout=max(0.0, deadline_s - self._loop.time()), metadata=self._metadata)
            problem = wrong_answer(request, answer)
            if problem is not None:
                return WRONG_ANSWER, f"{request.message.model_name}: {problem}"
        return OK, ""


def _check_options(options: LoadOptions) -> None:
    if not options.pipelines:
        raise SettingsError("--pipeline is missing: expected at least one model")
    for pipeline in options.pipelines:
        if not pipeline.stages:
            raise SettingsError(f"--pipeline: {pipeline.name} has no stage: expected its models in order")
        if pipeline.slo_ms <= 0.0:
            raise SettingsError(f"--slo-ms: {pipeline.slo_ms} is invalid: expected more than 0 ms")


def _schedules(options: LoadOptions) -> tuple[list[FloatArray], int]:
    traces = [load_trace(pipeline.trace, options.seed) for pipeline in options.pipelines]
    seeds: list[int | tuple[int, ...]] = [options.seed, *((options.seed, index) for index in range(1, len(traces)))]
    schedules = [arrivals(trace, seed) for trace, seed in zip(traces, seeds, strict=True)]
    return schedules, max(trace.duration_s for trace in traces)


async def _run_all(runs: Sequence[PipelineRun], duration_s: int, options: LoadOptions, on_second: OnSecond, stop: asyncio.Event) -> bool:
    """Send, and wait a bounded time for responses; True if `stop` ended the sending."""
    start_s = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        ticker = group.create_task(_tick(runs, start_s, on_second))
        senders = [group.create_task(run.send_all(start_s, duration_s, group)) for run in runs]
        stopper = group.create_task(_cancel_on(stop, senders))
        await asyncio.wait(senders)
        stopped = any(sender.cancelled() for sender in senders)
        await _drain(runs, STOP_DRAIN_S if stopped else options.drain_s)
        stopper.cancel()
        ticker.cancel()
    _report_second(runs, asyncio.get_running_loop().time() - start_s, on_second)
    return stopped


async def _cancel_on(stop: asyncio.Event, senders: Sequence[asyncio.Task[None]]) -> None:
    await stop.wait()
    for sender in senders:
        sender.cancel()


async def _drain(runs: Sequence[PipelineRun], timeout_s: float) -> None:
    pending = set[asyncio.Task[None]]().union(*(run.tasks for run in runs))
    if pending:
        await asyncio.wait(pending, timeout=timeout_s)
    for run in runs:
        run.give_up()


async def _tick(runs: Sequence[PipelineRun], start_s: float, on_second: OnSecond) -> None:
    loop = asyncio.get_running_loop()
    second = 0
    while True:
        second += 1
        await asyncio.sleep(max(0.0, start_s + second - loop.time()))
        _report_second(runs, float(second), on_second)


def _report_second(runs: Sequence[PipelineRun], at_s: float, on_second: OnSecond) -> None:
    for run in runs:
        on_second(run.second(at_s))
