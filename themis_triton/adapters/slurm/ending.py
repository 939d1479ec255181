"""The end of jobs: SIGTERM, then SIGKILL, until their nodes have confirmed it or are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from themis_triton.adapters.slurm.jobs import Job
from themis_triton.adapters.slurm.listing import JobList
from themis_triton.adapters.slurm.nodes import is_lost
from themis_triton.core.errors import ServerError

_FORCED_WAIT_S = 30.0


async def end_jobs(listing: JobList, jobs: Collection[Job], timeout_s: float) -> None:
    """Cancel jobs, after the time-out (0: at once) with SIGKILL; returns when nothing of them is left on nodes that answer.

    Raises:
        ServerError: one is still there, or Slurm does not answer.
    """
    left = jobs
    for force, bound_s in ((False, timeout_s), (True, _FORCED_WAIT_S)):
        if left and bound_s > 0.0:
            await listing.cancel(left, force=force)
            left = await _left(listing, left, bound_s)
    if left:
        ends = ", ".join(job.end for job in left)
        raise ServerError(f"{ends}: still there {_FORCED_WAIT_S:g} s after SIGKILL. Fix: see `scontrol show job`, and the node's slurmd")


async def _left(listing: JobList, jobs: Collection[Job], timeout_s: float) -> list[Job]:
    """Those of which something is left after a bounded wait, on nodes that the controller has not lost."""

    def left(current: Mapping[str, Job]) -> list[Job]:
        known = (current.get(job.incarnation) for job in jobs)
        return [job for job in known if job is not None and not job.is_gone]

    if await listing.wait_until(lambda current: not left(current), timeout_s):
        return []
    remaining = left(await listing.jobs())
    lost = await asyncio.gather(*(is_lost(job.node) for job in remaining))
    return [job for job, gone in zip(remaining, lost, strict=True) if not gone]
