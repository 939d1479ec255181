"""`themis profile`: measures a model's surface and costs point by point, and writes its profile file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ByteSize

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.process_end import wait_until
from themis_triton.adapters.process_identity import find_process
from themis_triton.core.errors import ServerError
from themis_triton.profile.bench import Bench
from themis_triton.profile.files import Conditions, Progress, read_profile, read_progress, resume_path, write_profile, write_progress
from themis_triton.profile.fit import Fit, best_fit
from themis_triton.profile.grid import GridPlan, Point, complete_table, next_points
from themis_triton.profile.identity import SERVED, config_hash, device_name, machine_name, model_config, model_hash
from themis_triton.profile.inputs import InputOptions, build_request, shapes_of
from themis_triton.profile.measure import Accuracy, better_point, is_poor, measure_point, planned_ms, run_instances
from themis_triton.settings.measured import (
    PROFILE_VERSION,
    FitSettings,
    LaunchSettingsMeasured,
    MeasuredSettings,
    OperationsSettings,
    PointSettings,
    TimeSource,
)
from themis_triton.settings.profile import DEFAULT_PROFILE, ProfileSettings, TableSettings


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """The scope and accuracy of a measurement. `files`: the model's folder, if it is readable here."""

    out: Path
    plan: GridPlan
    accuracy: Accuracy = field(default_factory=Accuracy)
    inputs: InputOptions = field(default_factory=InputOptions)
    files: Path | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: the point just measured, the number of measured points, and the number of points known to be missing."""

    point: PointSettings | None
    done: int
    left: int


async def profile_model(bench: Bench, options: ProfileOptions, tell: Callable[[Step], None]) -> ProfileSettings:
    """The profile, measured and written. After an interruption it resumes from its resume file and measures no point twice.

    Raises:
        ServerError: a request failed, or the server ended; the resume file holds the measured points.
        SettingsError: the resume file has other conditions, the existing file is not a profile, no input can be made up, or a file
            cannot be written.
        EnvironmentCheckError: scipy is not installed.
    """
    before = await asyncio.to_thread(read_profile, options.out) if options.out.exists() else None
    # Built before anything is measured or written, so that an invalid input is reported first.
    request = build_request(bench.spec, 1, options.inputs, batched=bench.batched)
    progress = read_progress(options.out, await _conditions(bench, options, shapes_of(request, batched=bench.batched)))
    if bench.launch is not None and progress.launch is None:
        times = {name: round(getattr(bench.launch, name), 4) for name in LaunchSettingsMeasured.model_fields}
        progress = progress.model_copy(update={"launch": LaunchSettingsMeasured(**times)})
    try:
        progress = await _measured(bench, options, progress, tell)
    except ServerError as error:
        raise ServerError(f"{await _ended(bench) or error}; {kept(options.out)}") from error
    profile = await asyncio.to_thread(finished, progress, options.plan, bench.tracer is not None)
    profile = profile.model_copy(update={"operations": retained_operations(before, profile)})
    await asyncio.to_thread(write_profile, options.out, profile)
    return profile


async def _measured(bench: Bench, options: ProfileOptions, progress: Progress, tell: Callable[[Step], None]) -> Progress:
    """All points of the grid, saved one by one, and the first point again at the end."""
    progress = await _change_costs(bench, options, progress)
    while missing := next_points(options.plan, _values(progress.points)):
        tell(Step(None, len(progress.points), len(missing)))
        at = _nearest(missing, progress.points)
        point = await measure_point(bench, at, options.inputs, options.accuracy)
        if is_poor(point):
            point = better_point(point, await measure_point(bench, at, options.inputs, options.accuracy))
        progress = progress.model_copy(
            update={"points": [*progress.points, point], "memory_bytes": progress.memory_bytes | bench.memory_bytes}
        )
        await asyncio.to_thread(write_progress, options.out, progress)
        tell(Step(point, len(progress.points), len(missing) - 1))
    first = progress.points[0]
    again = await measure_point(bench, (first.batch, first.instances), options.inputs, options.accuracy)
    return progress.model_copy(update={"drift_ratio": round(again.service_ms / first.service_ms, 4)})


_EXIT_S = 2.0


async def _ended(bench: Bench) -> str | None:
    """The error of a server process that has ended, or None. A server that is about to exit refuses requests first."""
    process = bench.server.process
    if process is None or not await wait_until(lambda: find_process(process) is None, _EXIT_S):
        return None
    return f"model {bench.model}: its server ended during the measurement. Fix: see its log {bench.server.log_file}"


def kept(profile: Path) -> str:
    """The state of an unfinished profile, and how to resume it."""
    path = resume_path(profile)
    return f"the measured points are in {path}; the same command resumes" if path.exists() else "nothing was measured yet"


def finished(progress: Progress, plan: GridPlan, traced: bool) -> ProfileSettings:
    """The profile of the measured points."""
    values = _values(progress.points)
    kept, fits = best_fit(values)
    table = complete_table(plan, values, _fitted(kept, values) if kept is not None else None)
    slope, base = memory_line(progress.memory_bytes)
    better = min(fits, key=lambda fit: fit.cross_error, default=None)
    init_s = _or(progress.instance_init_s, DEFAULT_PROFILE.instance_init_s)
    return ProfileSettings(
        table=TableSettings(
            batches=list(table.batches),
            instances=list(table.instances),
            latency_ms=[[round(value, 4) for value in row] for row in table.latency_ms],
        ),
        instance_init_s=init_s,
        instance_stop_s=_or(progress.instance_stop_s, DEFAULT_PROFILE.instance_stop_s),
        server_launch_s=_launch_s(progress, init_s),
        instance_memory=ByteSize(slope),
        measured=MeasuredSettings(
            version=PROFILE_VERSION,
            **progress.conditions.model_dump(exclude={"inputs"}),
            at=datetime.fromtimestamp(SystemClock().now_s(), UTC).isoformat(timespec="seconds"),
            source=TimeSource.TRACE if traced else TimeSource.CLIENT,
            points=[_with_error(point, better) for point in sorted(progress.points, key=lambda p: (p.instances, p.batch))],
            fits=[_fit_settings(fit, kept) for fit in fits],
            memory=ByteSize(base) if base else None,
            launch=progress.launch,
            drift_ratio=progress.drift_ratio,
        ),
    )


def retained_operations(before: ProfileSettings | None, profile: ProfileSettings) -> OperationsSettings | None:
    """The operations of the replaced profile, if it has the same model, server and device."""
    if before is None or before.measured is None or profile.measured is None:
        return None
    same = before.measured.triton_version == profile.measured.triton_version and before.measured.origin == profile.measured.origin
    return before.operations if same else None


def memory_line(memory_bytes: dict[int, int]) -> tuple[int, int]:
    """Bytes of one more instance (the least-squares slope), and of a server with one; zeros without readings."""
    known = {count: size for count, size in memory_bytes.items() if size > 0}
    if not known:
        return 0, 0
    mean_count, mean_size = (sum(values) / len(known) for values in (known.keys(), known.values()))
    spread = sum((count - mean_count) ** 2 for count in known)
    slope = sum((count - mean_count) * (size - mean_size) for count, size in known.items()) / spread if spread else 0.0
    return max(0, round(slope)), known.get(1, round(mean_size))


_OWN = "model_warmup"
"""Conditions of requests made of the model's own data."""


async def _conditions(bench: Bench, options: ProfileOptions, shapes: dict[str, list[int]]) -> Conditions:
    version = (await bench.statistics()).version
    return Conditions(
        model=bench.model,
        model_version=version,
        config_hash=config_hash_of(bench, options.files),
        model_hash=await asyncio.to_thread(model_hash, options.files) if options.files is not None else "",
        triton_version=await bench.triton_version(),
        machine=machine_name(),
        device=device_name(bench.server.device),
        percentile=options.accuracy.percentile,
        shapes=shapes,
        inputs=f"{options.inputs.file or ''}{dict(sorted(options.inputs.shapes.items())) or ''}{_OWN if options.inputs.sample else ''}",
    )


def config_hash_of(bench: Bench, files: Path | None) -> str:
    """The hash of the model's own file if its folder is readable, else of the configuration that the server reports."""
    return config_hash(model_config(files, bench.config_name)) if files is not None else f"{SERVED}{config_hash(bench.config)}"


async def _change_costs(bench: Bench, options: ProfileOptions, progress: Progress) -> Progress:
    """Measure the times to add and to remove an instance, once."""
    if progress.instance_init_s is not None or options.plan.max_instances < 2:
        return progress
    await run_instances(bench, 1)
    update = {"instance_init_s": round(await run_instances(bench, 2), 4), "instance_stop_s": round(await run_instances(bench, 1), 4)}
    progress = progress.model_copy(update=update)
    await asyncio.to_thread(write_progress, options.out, progress)
    return progress


def _nearest(missing: list[Point], points: list[PointSettings]) -> Point:
    """The next point, preferably with the current instance count, because changing it takes time."""
    now = points[-1].instances if points else 1
    return min(missing, key=lambda point: (abs(point[1] - now), point[1], point[0]))


def _values(points: list[PointSettings]) -> dict[Point, float]:
    return {(point.batch, point.instances): planned_ms(point) for point in points}


def _fitted(fit: Fit, values: dict[Point, float]) -> dict[Point, float]:
    return {(b, k): fit.at((b, k)) for b in {b for b, _ in values} for k in {k for _, k in values}}


def _with_error(point: PointSettings, fit: Fit | None) -> PointSettings:
    error = fit.error[point.batch, point.instances] if fit is not None else None
    return point.model_copy(update={"fit_error": None if error is None else round(error, 5)})


def _fit_settings(fit: Fit, kept: Fit | None) -> FitSettings:
    names = ("alpha_ms", "beta_ms", "gamma_ms", "zeta_ms", "cross_error")
    numbers = {name: round(getattr(fit, name), 5) for name in names}
    return FitSettings(form=fit.form.value, kept=fit is kept, **numbers)


def _launch_s(progress: Progress, init_s: float) -> float:
    """The time from process start to the first response, without the initialisation of instances, which is separate."""
    if progress.launch is None:
        return DEFAULT_PROFILE.server_launch_s
    whole_s: float = sum(getattr(progress.launch, name) for name in LaunchSettingsMeasured.model_fields)
    return round(max(0.0, whole_s - init_s), 4)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def refuse_live(models: list[str], where: str) -> None:
    """Raise ServerError if models of a server, or on a device, are answering requests."""
    if models:
        raise ServerError(
            f"{where} carries live traffic ({', '.join(models)}): measuring would slow it down and be distorted by it. "
            "Fix: choose another server or slot, or give --allow-live"
        )
