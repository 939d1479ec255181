"""`themis warm`, and the compilation of kernels before a command that needs them, with a progress bar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from themis_triton.commands.terminal import TerminalConsole
from themis_triton.compilation import CompileProgress, CompileResult, compile_kernels
from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.jit import Group


def warm_command(*, as_json: bool) -> CompileResult:
    """Compile every kernel that is not cached. Prints a summary, with `as_json` as one JSON object."""
    result = prepare_kernels(tuple(Group))
    console = TerminalConsole(soft_wrap=True)
    if as_json:
        console.file.write(json.dumps(asdict(result), default=str) + "\n")
        return result
    where = f"cached in {result.directory}" if result.directory is not None else "not cached: no directory is writable; set NUMBA_CACHE_DIR"
    console.print(
        f"{result.compiled} of {result.entries} kernels compiled in {result.seconds:.1f} s, {where}", markup=False, highlight=False
    )
    return result


def prepare_kernels(groups: Sequence[Group]) -> CompileResult:
    """Compile or load these groups. Shows a progress bar on standard error if a kernel is not cached."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=TerminalConsole(stderr=True), transient=True) as progress:
        bar = progress.add_task("compiling the solvers (once)", total=None, visible=False)

        def report(step: CompileProgress) -> None:
            progress.update(bar, completed=step.done, total=step.total, visible=True)

        return asyncio.run(compile_kernels(groups, report))


def planning_groups(config: ThemisConfig) -> tuple[Group, ...]:
    """The kernel groups that plans of these settings use."""
    return (Group.TICK, Group.SEPARATE) if config.planning.placement is Placement.SEPARATE else (Group.TICK,)
