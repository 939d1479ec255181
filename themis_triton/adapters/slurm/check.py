"""The live check of a Slurm cluster: its programs answer, it has nodes for the jobs, and their folder can be written."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from themis_triton.adapters.findings import Finding, fine, missing, unanswered
from themis_triton.adapters.local.triton_install import find_triton
from themis_triton.adapters.slurm.nodes import Node, list_nodes
from themis_triton.core.config import SlurmLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_WHAT = "launch.slurm"
_PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo")


async def check_jobs(launch: SlurmLaunchConfig) -> list[Finding]:
    """Whether Slurm's programs are here and answer, the partition has nodes that answer, and folder and Triton are there."""
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        fix = "install Slurm's client programs on this machine, and put them on PATH"
        return [missing(_WHAT, f"{', '.join(absent)} not found on PATH", fix)]
    return [await _check_nodes(launch), *await asyncio.to_thread(_check_files, launch)]


async def _check_nodes(launch: SlurmLaunchConfig) -> Finding:
    try:
        nodes = await list_nodes()
    except ServerError as error:
        fault, _, fix = str(error).partition(". Fix: ")
        return unanswered(_WHAT, fault, fix)
    known = sorted({node.partition for node in nodes})
    if launch.partition is not None and not set(launch.partition.split(",")) <= set(known):
        return missing(f"{_WHAT}.partition", f"there is no partition {launch.partition}", f"choose one of {', '.join(known)}")
    asked = set(launch.partition.split(",")) if launch.partition is not None else set(known)
    own = [node for node in nodes if node.partition in asked]
    if launch.gres is not None and not any(_has(node, launch.gres) for node in own):
        return missing(f"{_WHAT}.gres", f"no node has {launch.gres}", "see `sinfo -N -o '%N %G'` for what nodes have")
    up = {node.name for node in own if not node.is_lost}
    if not up:
        return unanswered(_WHAT, f"none of {len(own)} nodes answers the controller", "see `sinfo -R`")
    return fine(_WHAT, f"{len(up)} nodes answer in {', '.join(sorted(asked))}")


def _has(node: Node, gres: str) -> bool:
    """Whether a node has the kind of everything that is asked for; how many are free is Slurm's business."""
    kinds = {each.partition("(")[0].split(":")[0] for each in node.gres.split(",")}
    return all(each.removeprefix("gres:").removeprefix("gres/").split(":")[0] in kinds for each in gres.split(","))


def _check_files(launch: SlurmLaunchConfig) -> list[Finding]:
    findings = [_check_directory(launch.directory)]
    if launch.container is not None:
        there = launch.container.exists()
        fix = "give the path of an image that the nodes see too"
        what, text = f"{_WHAT}.container", f"{launch.container} is {'there' if there else 'not there'}"
        findings.append(fine(what, text) if there else missing(what, text, fix))
        return findings
    try:
        install = find_triton(launch.directory, launch.binary, launch.backend_directory)
    except EnvironmentCheckError as error:
        fault, _, fix = str(error).partition(". Fix: ")
        findings.append(missing("launch.binary", fault, fix or "set launch.binary, or launch.slurm.container"))
    else:
        findings.append(fine("launch.binary", f"{install.binary} is there; the nodes must see it under this path"))
    return findings


def _check_directory(directory: Path) -> Finding:
    what = f"{_WHAT}.directory"
    parent = next((folder for folder in (directory, *directory.parents) if folder.exists()), directory)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return fine(what, f"{directory} can be written")
    return missing(what, f"{directory} cannot be written ({parent})", "choose a folder that this user can write, here and on the nodes")
