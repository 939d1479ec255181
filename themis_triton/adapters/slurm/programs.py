"""Slurm's command-line programs: run without a shell, with a deadline, and with nothing of the sidecar's own Slurm variables."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from themis_triton.core.errors import EnvironmentCheckError, ServerError

READ_TIMEOUT_S = 15.0
WRITE_TIMEOUT_S = 30.0
_VARIABLES = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SCANCEL_", "SALLOC_", "SRUN_")
_KEPT = "SLURM_CONF"
_FIX = "see that slurmctld runs and can be reached from here (`scontrol ping`), and that this user may do it"


class SlurmError(ServerError):
    """A program of Slurm failed, or did not end in time; the message has its own words."""


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the settings alone decide: a sidecar inside a job, or a user's own defaults, would change the options."""
    return {name: value for name, value in environment.items() if name == _KEPT or not name.startswith(_VARIABLES)}


async def run_program(*command: str, timeout_s: float = READ_TIMEOUT_S) -> str:
    """The output of a program.

    Raises:
        EnvironmentCheckError: it is not installed here.
        SlurmError: it failed, or did not end in time.
    """
    name = command[0]
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=null, stdout=pipe, stderr=pipe, env=clean_environment(os.environ), start_new_session=True
        )
    except OSError as error:
        fix = "install Slurm's client programs on this machine, and put them on PATH"
        raise EnvironmentCheckError(f"launch.kind: slurm: {name} cannot be started ({error.strerror}). Fix: {fix}") from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError as error:
        raise SlurmError(f"{name} did not end within {timeout_s:g} s. Fix: {_FIX}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = " ".join(errors.decode(errors="replace").split()) or "no message"
        raise SlurmError(f"{name} failed with exit code {process.returncode}: {words}. Fix: {_FIX}")
    return output.decode(errors="replace")
