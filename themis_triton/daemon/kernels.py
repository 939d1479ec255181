"""The kernels of a tick: where they are not cached, the interpreter runs them until they are compiled in the background."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from themis_triton.compilation import CompileProgress, KernelLoader
from themis_triton.jit import Group, interpret_kernels

log = structlog.get_logger()
Value = TypeVar("Value")
FIRST_RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
INTERPRETED = "kernels are being compiled in the background: until then decisions take longer"


class Kernels:
    """What a tick asks before it computes: `switch` loads the kernels once they are compiled."""

    def __init__(self, loader: KernelLoader) -> None:
        self._loader = loader
        self.compiling = asyncio.create_task(loader.compile())
        self._restore: Callable[[], None] | None = None
        self._computing = False
        self._retry_s = FIRST_RETRY_S

    @property
    def interpreted(self) -> bool:
        """Whether the interpreter runs the kernels now."""
        return self._restore is not None

    async def start(self) -> None:
        """Load the kernels if they are cached, or have the interpreter run them. SolverError when they do not compile."""
        if self._loader.missing and self._loader.compiles_in_children:
            log.warning("kernels_interpreted", message=INTERPRETED)
            self._restore = interpret_kernels()
        else:
            await self.compiling
            await self._load()

    async def switch(self) -> bool:
        """Load the kernels as soon as they are compiled; call it between computations. Returns whether it did.

        What failed is tried again after a while: a full disk or too little memory may be over by then.
        """
        if self._restore is None or not self.compiling.done():
            return False
        error: BaseException | None = self.compiling.exception()
        if error is None:
            self._restore()
            try:
                await self._load()
            except Exception as failure:  # noqa: BLE001 - a damaged cache can raise anything, and the interpreter still decides
                error = failure
            else:
                self._restore = None
                return True
            self._restore = interpret_kernels()
        words = f"decisions go on without compiled kernels, and it is tried again in {self._retry_s:g} s"
        log.error("kernels_not_compiled", error=str(error), message=words)
        self.compiling = asyncio.create_task(self._compile_after(self._retry_s))
        self._retry_s = min(LONGEST_RETRY_S, 2.0 * self._retry_s)
        return False

    async def _compile_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._loader.compile()

    async def compute(self, work: Callable[[], Value]) -> Value:
        """The result of a computation; while the interpreter runs the kernels in a thread, because it may take seconds then."""
        if not self.interpreted:
            return work()
        self._computing = True  # and stays so where this is cancelled: the thread then goes on
        try:
            value = await in_thread(work)
        except Exception:
            self._computing = False
            raise
        self._computing = False
        return value

    async def close(self) -> None:
        """End the compilation."""
        self.compiling.cancel()
        await asyncio.wait({self.compiling})
        if self._restore is not None and not self._computing:
            self._restore()

    async def _load(self) -> None:
        result = await self._loader.load()
        if result.compiled:
            log.info("kernels_compiled", total=result.compiled, seconds=round(result.seconds, 1), cache=str(result.directory))


@asynccontextmanager
async def preparing_kernels(state_directory: Path) -> AsyncIterator[Kernels]:
    """Begin to compile the kernels that are not cached; the compilation ends with the block."""
    with KernelLoader((Group.TICK,), _report, state_directory / "kernels") as loader:
        kernels = Kernels(loader)
        try:
            yield kernels
        finally:
            await kernels.close()


async def load_cached_kernels(state_directory: Path) -> None:
    """Load the kernels into this process where all are cached, as a leader that compiles them should not get company."""
    with KernelLoader((Group.TICK,), _report, state_directory / "kernels") as loader:
        if not loader.missing:
            await loader.load()


def _report(step: CompileProgress) -> None:
    log.info("kernels_compiling", done=step.done, total=step.total, entry=step.entry)


async def in_thread(work: Callable[[], Value]) -> Value:
    """The result of work in a thread that does not keep the process from ending, as the event loop's own threads would."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Value] = loop.create_future()

    def settle(value: Value | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            with np.errstate(all="ignore"):  # compiled code divides by zero without a warning
                outcome: tuple[Value | None, BaseException | None] = (work(), None)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            outcome = (None, error)
        with suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="decide", daemon=True).start()
    return await result
