"""Compiles the kernels of solver and simulator that a command needs, before it starts.

Child processes compile, because a compilation blocks for seconds and only a process can be stopped at any time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from themis_triton.core.errors import SolverError
from themis_triton.jit import Entry, Group, cache_directory, marker, use_cache
from themis_triton.sim import kernels as sim_kernels
from themis_triton.solver import kernels as solver_kernels

ENTRIES: tuple[Entry, ...] = (*solver_kernels.ENTRIES, *sim_kernels.ENTRIES)
PROCESSES = 2
NICENESS = 10  # compilation must not slow down the models that serve on this machine


@dataclass(frozen=True, slots=True)
class CompileProgress:
    """`done` of `total` entries are compiled; `entry` was the last one, empty before the first."""

    done: int
    total: int
    entry: str = ""


@dataclass(frozen=True, slots=True)
class CompileResult:
    """The number of entries, how many of them were compiled, and the duration in seconds."""

    entries: int
    compiled: int
    seconds: float
    directory: Path | None


Report = Callable[[CompileProgress], None]


def use_kernel_cache() -> Path | None:
    """Choose the cache directory of this process's kernels; they are loaded, or compiled, when first called. None: there is no cache."""
    directory = cache_directory()
    if directory is not None:
        use_cache(ENTRIES, directory)
    return directory


async def compile_kernels(groups: Sequence[Group], report: Report) -> CompileResult:
    """Load the entries of these groups. Missing ones are compiled first, with progress reports from 0 to all.

    No report if all are cached. Cancelling ends the compilation at once. SolverError when a compilation fails.
    """
    started_s = time.monotonic()
    entries = _entries_of(groups)
    with ExitStack() as stack:
        chosen = directory = cache_directory()
        if directory is None:  # private, and only to hand compiled code over from the children
            with suppress(OSError):
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="themis-kernels-")))
        missing = [group for group in groups if directory is None or not marker(directory, group).exists()]
        to_compile = _entries_of(missing)
        if to_compile:
            report(CompileProgress(0, len(to_compile)))
        if directory is None:
            await _compile_here(to_compile, report)
        else:
            await _compile_in_children(to_compile, directory, report)
            for group in missing:
                marker(directory, group).touch()
            use_cache(ENTRIES if chosen is not None else entries, directory)
            await asyncio.to_thread(_compile_all, entries)
    return CompileResult(len(entries), len(to_compile), time.monotonic() - started_s, chosen)


def _entries_of(groups: Sequence[Group]) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.group in groups]


def _compile_all(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.compile()


async def _compile_here(entries: Sequence[Entry], report: Report) -> None:
    """In a daemon thread, which does not keep the process from ending: without any writable directory children cannot hand over code."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Queue[Entry | Exception] = asyncio.Queue()

    def compile_each() -> None:
        for entry in entries:
            try:
                entry.compile()
            except Exception as error:  # noqa: BLE001 - raised again where the result is awaited
                loop.call_soon_threadsafe(finished.put_nowait, error)
                return
            loop.call_soon_threadsafe(finished.put_nowait, entry)

    threading.Thread(target=compile_each, name="compile-kernels", daemon=True).start()
    for done in range(1, len(entries) + 1):
        result = await finished.get()
        if isinstance(result, Exception):
            raise SolverError(f"kernels: compilation failed: {result}") from result
        report(CompileProgress(done, len(entries), result.name))


async def _compile_in_children(entries: Sequence[Entry], directory: Path, report: Report) -> None:
    waiting, done = list(entries), 0

    def finished(entry: Entry) -> None:
        nonlocal done
        done += 1
        report(CompileProgress(done, len(entries), entry.name))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(PROCESSES, len(entries))):
                group.create_task(_compile_in_child(waiting, directory, finished))
    except* SolverError as errors:
        raise errors.exceptions[0] from None


async def _compile_in_child(waiting: list[Entry], directory: Path, finished: Callable[[Entry], None]) -> None:
    """One child; it takes entries from `waiting` until none is left."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "themis_triton.compilation", str(directory)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children
    )
    try:
        while waiting and child.stdin is not None and child.stdout is not None and child.stderr is not None:
            entry = waiting.pop(0)
            child.stdin.write(f"{entry.name}\n".encode())
            if not await child.stdout.readline():
                lines = (await child.stderr.read()).decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"the compiler ended with status {await child.wait()}"
                raise SolverError(f"kernels: {entry.name} did not compile: {reason}. Fix: run `themis warm`; the cache is {directory}")
            finished(entry)
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


def main() -> None:
    """A child: compiles the entries whose names standard input holds into the directory of its argument, and prints each name."""
    os.nice(NICENESS)
    use_cache(ENTRIES, Path(sys.argv[1]))
    by_name = {entry.name: entry for entry in ENTRIES}
    for line in sys.stdin:
        by_name[line.strip()].compile()
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
