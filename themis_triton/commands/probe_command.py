"""`themis probe`: measures one model's operations and writes them to its profile file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from themis_triton.commands.bench_place import (
    BenchFlags,
    BenchPlace,
    inputs_of,
    models_of,
    opened,
    quiet_device,
    resolve,
    warmed_with,
)
from themis_triton.commands.interruptible import run_interruptible
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.profile.files import read_profile, refuse_other, replace_profile
from themis_triton.profile.identity import device_name
from themis_triton.profile.probe import ProbeOptions, probe_model
from themis_triton.profile.run import config_hash_of
from themis_triton.settings.measured import OperationsSettings
from themis_triton.settings.profile import ProfileSettings


def probe_command(model: str, out: Path, options: ProbeOptions, where: BenchFlags, *, as_json: bool) -> None:
    """Probe the model and write the result to its existing profile file. Other keys are unchanged."""
    place, path = resolve(where), out / f"{model}.yaml"
    models_of(model, place)
    profile = read_profile(path)
    console = TerminalConsole(stderr=True)
    operations = run_interruptible(_probed(model, options, place, console, path, profile))
    replace_profile(path, profile.model_copy(update={"operations": operations}))
    console.print(_table(model, operations))
    console.print(f"{path}: operations written", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        TerminalConsole().file.write(json.dumps(operations.model_dump(mode="json", exclude_none=True)) + "\n")


async def _probed(
    model: str, options: ProbeOptions, place: BenchPlace, console: Console, path: Path, profile: ProfileSettings
) -> OperationsSettings:
    device = await quiet_device(place)
    if device is None and (reach := place.launch.reach_from(place.slot.device)):
        console.print(not_probed(model, reach), markup=False, highlight=False, soft_wrap=True)
    with console.status(f"{escape(model)}: starting a scratch server") as status:
        async with opened(model, warmed_with(place, model, options.inputs)) as bench:
            if profile.measured is not None:
                now = {"model": model, "config_hash": config_hash_of(bench, place.files(model)), "device": device_name(bench.server.device)}
                refuse_other(path, profile.measured.model_dump(), now, f"measure it again with `themis profile {model}`")
            options = replace(options, inputs=inputs_of(model, options.inputs, place, bench), device=device)
            return await probe_model(bench, options, lambda operation: status.update(f"{escape(model)}: {operation}"))


def not_probed(model: str, reach: tuple[str, ...]) -> str:
    """A warning that growth onto another device is left out."""
    return (
        f"warning: {model}: add_device and remove_device are not probed: {', '.join(reach)} {'carry' if reach[1:] else 'carries'} "
        "live traffic. Fix: give --reach with a device without traffic, or --allow-live"
    )


def _table(model: str, operations: OperationsSettings) -> Table:
    table = Table(
        Column("operation", no_wrap=True), "method", "duration", "requests", "errors", "added latency", "peak memory", title=escape(model)
    )
    for name, operation in operations:
        if operation is not None:
            how = "refused" if operation.refused is not None else "in place" if operation.in_place else "reload"
            table.add_row(
                name,
                how,
                f"{operation.duration_s:.2f} s",
                str(operation.requests),
                str(operation.errors),
                f"{operation.latency_added_ms:.0f} ms",
                operation.memory_peak.human_readable(),
            )
    return table
