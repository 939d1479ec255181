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
from typing import IO, Self

from themis_triton.core.errors import SolverError
from themis_triton.estimate import counter_kernels
from themis_triton.jit import Entry, Group, cache_directory, marker, use_cache
from themis_triton.sim import kernels as sim_kernels
from themis_triton.solver import kernels as solver_kernels

ENTRIES: tuple[Entry, ...] = (*solver_kernels.ENTRIES, *counter_kernels.ENTRIES, *sim_kernels.ENTRIES)
PROCESSES = 2
_READ_BYTES = 4096
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
    with KernelLoader(groups, report) as loader:
        await loader.compile()
        return await loader.load()


class KernelLoader:
    """Makes the entries of some groups ready in two steps, `compile` and `load`. Use it as a context manager.

    Args:
        groups: which entries.
        report: called with the progress of the compilation.
        fallback: a directory for compiled code where neither the package nor the user has a writable one.
    """

    def __init__(self, groups: Sequence[Group], report: Report, fallback: Path | None = None) -> None:
        self._groups = groups
        self._report = report
        self._started_s = time.monotonic()
        self._stack = ExitStack()
        self._chosen = self._directory = cache_directory(fallback=fallback)
        if self._directory is None:  # private, and only to hand compiled code over from the children
            with suppress(OSError):
                self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="themis-kernels-")))
        self._missing_groups = [group for group in groups if self._directory is None or not marker(self._directory, group).exists()]
        self.missing = _entries_of(self._missing_groups)
        """The entries that must be compiled."""

    def __enter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove a private directory."""
        self._stack.close()

    @property
    def compiles_in_children(self) -> bool:
        """Whether this process's own kernels are untouched until `load`: else they are compiled in place."""
        return self._directory is not None

    async def compile(self) -> None:
        """Compile what is missing. Cancelling ends it at once."""
        if self.missing:
            self._report(CompileProgress(0, len(self.missing)))
        if self._directory is None:
            await _compile_here(self.missing, self._report)
            return
        await _compile_in_children(self.missing, self._directory, self._report)
        for group in self._missing_groups:
            marker(self._directory, group).touch()

    async def load(self) -> CompileResult:
        """Load all entries, once `compile` has ended. A cache that is damaged is emptied, and they are compiled here."""
        entries = _entries_of(self._groups)
        if self._directory is not None:
            use_cache(ENTRIES if self._chosen is not None else entries, self._directory)
            if not await asyncio.to_thread(_loaded, entries, self._directory):
                for group in self._groups:
                    marker(self._directory, group).touch()
        return CompileResult(len(entries), len(self.missing), time.monotonic() - self._started_s, self._chosen)


def _entries_of(groups: Sequence[Group]) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.group in groups]


def _loaded(entries: Sequence[Entry], directory: Path) -> bool:
    """Load all; False where the cache was damaged, so that they were compiled."""
    try:
        _compile_all(entries)
    except Exception:  # noqa: BLE001 - a damaged file can raise anything, and what is not the file's fault is raised again
        for file in [path for path in directory.rglob("*") if path.is_file()]:
            file.unlink(missing_ok=True)
        _compile_all(entries)
        return False
    return True


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
    with tempfile.TemporaryFile() as errors:  # a pipe that is read at the end only would block a child with many warnings
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "themis_triton.compilation", str(directory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children
        )
        try:
            while waiting and child.stdin is not None and child.stdout is not None:
                entry = waiting.pop(0)
                child.stdin.write(f"{entry.name}\n".encode())
                if not await child.stdout.readline():
                    status = await child.wait()
                    reason = _last_line(errors) or f"the compiler ended with status {status}"
                    raise SolverError(f"kernels: {entry.name} did not compile: {reason}. Fix: run `themis warm`; the cache is {directory}")
                finished(entry)
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.communicate()


def _last_line(file: IO[bytes]) -> str:
    file.seek(-min(_READ_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


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
