"""`themis probe`: the cost of each operation under load, whether it loses requests, and whether it works in place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from pydantic import ByteSize
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.triton.client import KEY_HEADER
from themis_triton.adapters.triton.model_config import to_json, with_state
from themis_triton.core.errors import ChangeRefusedError, ServerError
from themis_triton.core.fleet import ModelState
from themis_triton.load.requests import StageRequest, wrong_answer
from themis_triton.profile.bench import Bench
from themis_triton.profile.inputs import InputOptions, build_request
from themis_triton.settings.measured import PROVING_REQUESTS, OperationSettings, OperationsSettings

_MEMORY_EVERY_S = 0.2
_CALM_S = 3.0
_TIMEOUT_S = 30.0
_IMPOSSIBLE = "no-such-backend"


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """`many`: instances added at once in one probe. `rate_rps` None: half the throughput of one instance.

    `device`: a further device of the scratch server, for the operations that add and remove a device; None: these are left out.
    """

    many: int = 3
    rate_rps: float | None = None
    device: str | None = None
    calm_s: float = _CALM_S
    inputs: InputOptions = field(default_factory=InputOptions)


@dataclass(slots=True)
class OpenLoad:
    """Requests at a constant rate, whatever their outcome: (due at, ended at, latency or None after a failure)."""

    stub: Any
    request: StageRequest
    rate_rps: float
    answers: list[tuple[float, float, float | None]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Send until cancelled."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            task = asyncio.create_task(self._one(next_s))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            next_s += 1.0 / self.rate_rps
            await asyncio.sleep(max(0.0, next_s - loop.time()))

    async def _one(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await self.stub.ModelInfer(self.request.message, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            self.answers.append((due_s, loop.time(), None))
            return
        wrong, ended_s = wrong_answer(self.request, answer), loop.time()
        self.answers.append((due_s, ended_s, None if wrong is not None else 1000.0 * (ended_s - due_s)))

    def ended_between(self, start_s: float, end_s: float) -> list[float]:
        """Latencies in ms of the requests that were due and answered in the interval."""
        return [latency for due_s, ended_s, latency in self.answers if start_s <= due_s and ended_s < end_s and latency is not None]

    def in_flight(self, start_s: float, end_s: float) -> tuple[list[float], int]:
        """Latencies in ms of the requests in flight at some time of the interval, and the number of failures among them."""
        latencies = [latency for due_s, ended_s, latency in self.answers if due_s <= end_s and ended_s >= start_s]
        return [latency for latency in latencies if latency is not None], sum(latency is None for latency in latencies)


async def probe_model(bench: Bench, options: ProbeOptions, tell: Callable[[str], None]) -> OperationsSettings:
    """The costs of every operation, carried out one after the other on a scratch server under load.

    Raises:
        ServerError: the server does not answer, or a request failed before the first operation.
        SettingsError: no input can be made up.
    """
    await bench.set_instances(1)
    request = build_request(bench.spec, 1, options.inputs, batched=bench.batched)
    async with _loaded(bench, request, options) as load:
        prober = Prober(bench, load, max(options.calm_s, 2 * (PROVING_REQUESTS + 1) / load.rate_rps), tell)
        add_one = await prober.probe("one more", lambda: _count(bench, 2), starts=1)
        remove_one = await prober.probe("one fewer", lambda: _count(bench, 1), starts=0) if add_one.refused is None else None
        add_device, remove_device = await probe_devices(prober, options.device)
        add_many = await prober.probe(f"{options.many} more", lambda: _count(bench, 1 + options.many), starts=options.many)
        rebatch = None
        if bench.config.max_batch_size > 1:
            rebatch = await prober.probe("other batching", lambda: _rebatch(bench, 1 + options.many), starts=0)
        failure = await prober.probe("a load that fails", lambda: _fail(bench), starts=0)
    return OperationsSettings(
        add_one=add_one,
        remove_one=remove_one,
        add_many=add_many,
        add_device=add_device,
        remove_device=remove_device,
        rebatch=rebatch,
        load_failure=failure,
    )


async def probe_devices(prober: Prober, device: str | None) -> tuple[OperationSettings | None, OperationSettings | None]:
    """Growth from the home device onto another, and the removal from it; None for what could not be tried."""
    if device is None:
        return None, None
    bench, home = prober.bench, prober.bench.server.device
    added = await prober.probe(f"one on {device}", lambda: _spread(bench, {home: 1, device: 1}), starts=1)
    if added.refused is not None:
        return added, None
    return added, await prober.probe(f"none on {device}", lambda: _spread(bench, {home: 1}), starts=0)


@asynccontextmanager
async def _loaded(bench: Bench, request: StageRequest, options: ProbeOptions) -> AsyncIterator[OpenLoad]:
    rate_rps = options.rate_rps or 0.5 / await _service_s(bench, request)
    load = OpenLoad(bench.stub, request, rate_rps)
    sender = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        sender.cancel()
        await asyncio.gather(sender, *load.tasks, return_exceptions=True)


async def _service_s(bench: Bench, request: StageRequest) -> float:
    """Mean time of a few sequential requests."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    count = 5
    for _ in range(count):
        try:
            answer = await bench.stub.ModelInfer(request.message, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise ServerError(
                f"model {bench.model} answered {error.code().name}: {error.details()}; see {bench.server.log_file}"
            ) from error
        if (wrong := wrong_answer(request, answer)) is not None:
            raise ServerError(f"model {bench.model} answered wrongly: {wrong}; see {bench.server.log_file}")
    return (loop.time() - started_s) / count


@dataclass(slots=True)
class Prober:
    """Carries out operations under load, with `calm_s` before and after each."""

    bench: Bench
    load: OpenLoad
    calm_s: float
    tell: Callable[[str], None]

    async def probe(self, name: str, operation: Callable[[], Awaitable[str | None]], starts: int) -> OperationSettings:
        """The effect of one operation between two idle periods. In place means that at most `starts` instances started."""
        self.tell(name)
        loop = asyncio.get_running_loop()
        calm_from_s = loop.time()
        await asyncio.sleep(self.calm_s)
        peak = _MemoryPeak(self.bench)
        watch = asyncio.create_task(peak.run())
        started_before = _instances_started(self.bench)
        started_s = loop.time()
        try:
            refused = await operation()
        finally:
            ended_s = loop.time()
            await asyncio.sleep(self.calm_s)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await self._answered()
        before = self.load.ended_between(calm_from_s, started_s)
        during, errors = self.load.in_flight(started_s, ended_s + self.calm_s / 2)
        return OperationSettings(
            in_place=_instances_started(self.bench) - started_before <= starts,
            duration_s=round(ended_s - started_s, 4),
            requests=len(during) + errors,
            errors=errors,
            latency_added_ms=round(max(0.0, max(during, default=0.0) - max(before, default=0.0)), 2),
            memory_peak=ByteSize(peak.bytes),
            refused=refused,
        )

    async def _answered(self) -> None:
        """Wait until all requests in flight have ended; their time-out bounds the wait."""
        pending = set(self.load.tasks)
        if pending:
            await asyncio.wait(pending, timeout=_TIMEOUT_S)


@dataclass(slots=True)
class _MemoryPeak:
    bench: Bench
    bytes: int = 0

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self.bytes = max(self.bytes, await self.bench.read_memory())
            await asyncio.sleep(_MEMORY_EVERY_S)


def _instances_started(bench: Bench) -> int:
    """The number of instance starts in the server's log; a reload starts all instances."""
    text = Path(bench.server.log_file or "").read_text(encoding="utf-8", errors="replace") if bench.server.log_file else ""
    return text.count(f"TRITONBACKEND_ModelInstanceInitialize: {bench.model}_")


async def _count(bench: Bench, count: int) -> str | None:
    try:
        await bench.set_instances(count)
    except ChangeRefusedError as error:
        return str(error)
    return None


async def _spread(bench: Bench, counts: Mapping[str, int]) -> str | None:
    try:
        await bench.set_devices(counts)
    except ChangeRefusedError as error:
        return str(error)
    return None


async def _rebatch(bench: Bench, count: int) -> str | None:
    """Enable dynamic batching at the model's maximum batch size."""
    try:
        await bench.control.change(bench.server, bench.model, ModelState(count, bench.config.max_batch_size, 0))
    except ChangeRefusedError as error:
        return str(error)
    return None


async def _fail(bench: Bench) -> str | None:
    """Request a change that no server can carry out: a backend that does not exist."""
    override = with_state(bench.config, ModelState(2, 1, 0))
    override.backend = _IMPOSSIBLE
    override.platform = ""
    headers = {KEY_HEADER: bench.server.model_control_key} if bench.server.model_control_key else None
    try:
        await bench.client.load_model(bench.model, headers=headers, config=to_json(override))
    except InferenceServerException as error:
        return str(error.message())
    raise ServerError(
        f"model {bench.model}: a load with the backend {_IMPOSSIBLE} succeeded: expected an error, "
        "so this Triton does not check configurations"
    )
