"""The sidecar's jobs as the controller has them: one `squeue` for all of them, so that asking for one costs no call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import structlog

from themis_triton.adapters.slurm.jobs import FORMAT, Job, parse_jobs
from themis_triton.adapters.slurm.programs import WRITE_TIMEOUT_S, SlurmError, run_program
from themis_triton.core.errors import ThemisError

log = structlog.get_logger()
_WAIT_POLL_S = 0.5
_MAX_PAUSE_S = 30.0
_SOON_S = 600.0


class JobList:
    """Keeps the jobs of a sidecar, by incarnation, those that ended lately among them. Use it from one event loop, and `close` it there.

    While the controller does not answer, the last known jobs stay.
    """

    def __init__(self, sidecar: str, poll_s: float) -> None:
        self._sidecar = sidecar
        self._poll_s = poll_s
        self._jobs: dict[str, Job] = {}
        self._listed = False
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._cancelled: set[str] = set()
        self._announced: set[str] = set()

    async def jobs(self) -> Mapping[str, Job]:
        """All jobs, without a call once they were listed. SlurmError where they could not be listed yet."""
        if not self._listed:
            await self.refresh()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return self._jobs

    async def refresh(self) -> Mapping[str, Job]:
        """All jobs as they are now. SlurmError where the controller does not answer."""
        async with self._lock:
            await self._list()
        return self._jobs

    async def submit(self, name: str, command: Collection[str]) -> Job:
        """Run `sbatch`; the job is known from then on, because no list that began before can hide it.

        Where its answer was lost, the job that it made is looked up by its name. SlurmError where there is none.
        """
        await self.jobs()
        async with self._lock:
            try:
                answer = await run_program(*command, timeout_s=WRITE_TIMEOUT_S)
            except SlurmError:
                with contextlib.suppress(SlurmError):
                    await self._list()
                made = next((job for job in self._jobs.values() if job.name == name), None)
                if made is None:
                    raise
                return made
            job = Job(answer.strip().partition(";")[0], "PENDING", "", None, name, "")
            self._jobs[job.incarnation] = job
            return job

    async def cancel(self, jobs: Collection[Job], *, force: bool = False) -> None:
        """End jobs: SIGTERM to the server of one that runs; `force`: SIGKILL to all of its processes. One that has ended is no error."""
        self._cancelled |= {job.incarnation for job in jobs}
        for job in jobs:
            options = [] if job.is_waiting else ["--signal=KILL", "--full"] if force else ["--signal=TERM", "--batch"]
            try:
                # Both must fit: the number may be that of another job by now.
                await run_program("scancel", *options, f"--name={job.name}", job.number, timeout_s=WRITE_TIMEOUT_S)
            except SlurmError as error:
                current = (await self.refresh()).get(job.incarnation)
                if current is not None and not current.is_over:
                    raise SlurmError(f"job {job.number} could not be cancelled: {error}") from error

    async def wait_until(self, holds: Callable[[Mapping[str, Job]], bool], timeout_s: float) -> bool:
        """Wait, bounded, until the condition holds for all jobs; False when the time-out came first. SlurmError as `refresh`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while not holds(await self.refresh()):
            if loop.time() >= deadline_s:
                return False
            await asyncio.sleep(_WAIT_POLL_S)
        return True

    async def close(self) -> None:
        """End the polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _list(self) -> None:
        output = await run_program("squeue", "--me", "--noheader", "--states=all", f"--format={FORMAT}")
        before, self._jobs, self._listed = self._jobs, parse_jobs(output, self._sidecar), True
        for key, job in before.items():
            now = self._jobs.get(key)
            if not job.is_over and (now is None or now.is_over) and key not in self._cancelled:
                last = now if now is not None else replace(job, reason="is known to Slurm no more")
                log.warning("job_ended", server=job.server, job=job.number, node=last.node or job.node, state=last.state, end=last.end)
        self._announce_ends()
        self._cancelled &= self._jobs.keys()

    def _announce_ends(self) -> None:
        """Log each job once whose time limit comes soon."""
        self._announced &= self._jobs.keys()
        for key, job in self._jobs.items():
            runs = not job.is_waiting and not job.is_over
            if runs and key not in self._announced and job.left_s is not None and job.left_s < _SOON_S:
                self._announced.add(key)
                log.warning("job_ends_soon", server=job.server, job=job.number, node=job.node, left_s=job.left_s)

    async def _run(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(min(_MAX_PAUSE_S, self._poll_s * 2 ** min(failures, 5)))
            try:
                await self.refresh()
                failures = 0
            except ThemisError as error:
                failures += 1
                if failures == 1:
                    log.warning("jobs_not_listed", error=str(error), message="the last known jobs are kept; the list is tried again")
