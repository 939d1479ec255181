"""Shared parts of the benchmarks: machine and commit of a result, and its file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from themis_triton.compilation import use_kernel_cache
from themis_triton.core.policy import PolicyConfig
from themis_triton.load.twitter import TRACES_VARIABLE

RESULTS = Path(__file__).parent / "results"
SECTIONS = ("demand", "scale_up", "scale_down")
use_kernel_cache()  # of this process, and of each worker process that imports the benchmark


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, system and Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def recorded_trace(file: str) -> Path:
    """The path of a recorded trace. SystemExit with what to do where it is not there."""
    folder = os.environ.get(TRACES_VARIABLE)
    if not folder:
        raise SystemExit(f"{TRACES_VARIABLE} is not set: expected the folder that holds {file}. Fix: export {TRACES_VARIABLE}=FOLDER")
    path = Path(folder) / file
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Fix: set {TRACES_VARIABLE} to the folder that holds {file}")
    return path


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages."""
    return {package: version(package) for package in packages}


def commit() -> str:
    """The commit that was measured; `+changes` when the working tree differs from it, `none` outside a repository."""
    found = _git("rev-parse", "HEAD")
    if found is None:
        return "none"
    return found + ("+changes" if _git("status", "--porcelain") else "")


def shortened(commit: str) -> str:
    """Twelve digits of a commit, and whether the tree had changes beyond it."""
    digits, plus, _ = commit.partition("+")
    return digits[:12] + (" with changes" if plus else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(("git", *arguments), cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def percentiles_ms(durations_s: Sequence[float]) -> dict[str, float]:
    """Count, mean, p50 and p99 of durations, in ms."""
    found = np.asarray(durations_s) * 1000
    return {
        "count": len(found),
        "mean_ms": round(float(found.mean()), 3),
        "p50_ms": round(float(np.percentile(found, 50)), 3),
        "p99_ms": round(float(np.percentile(found, 99)), 3),
    }


def write_result(name: str, measured: dict[str, Any]) -> Path:
    """`results/NAME.json` with the machine and the commit beside what was measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "commit": commit(), **measured}, indent=2) + "\n", encoding="utf-8")
    return path


def with_constants(policy: PolicyConfig, constants: Mapping[str, Any]) -> PolicyConfig:
    """The policy with constants replaced, each by its key alone: keys are unique over the general ones and the sections of `themis`."""
    for key, value in constants.items():
        if hasattr(policy, key):
            policy = replace(policy, **{key: value})
            continue
        (section,) = [name for name in SECTIONS if hasattr(getattr(policy, name), key)]
        policy = replace(policy, **{section: replace(getattr(policy, section), **{key: value})})
    return policy


def constant(policy: PolicyConfig, key: str) -> Any:  # noqa: ANN401 - of whatever type the constant is
    """One constant by its key."""
    sections = [policy, *(getattr(policy, name) for name in SECTIONS)]
    return next(getattr(section, key) for section in sections if hasattr(section, key))
