"""The version of an Envoy, and which one the settings need."""

from __future__ import annotations

import re
from pathlib import Path

from themis_triton.core.config import ThemisConfig

Version = tuple[int, int]
LIMITS_SINCE: Version = (1, 31)
"""From then on limits are refilled continuously. Before, all tokens came at once, at the end of each interval."""
_VERSION = re.compile(r"/(\d+)\.(\d+)\.\d+[^/\s]*/")


def needed_version(config: ThemisConfig) -> Version | None:
    """The earliest Envoy that does what the settings ask for; None: any that reads the files."""
    return LIMITS_SINCE if any(pipeline.sheds for pipeline in config.pipelines) else None


def version_in(text: str) -> Version | None:
    """The version in the output of `envoy --version` or in an Envoy's answer; None where there is none."""
    match = _VERSION.search(text)
    return (int(match[1]), int(match[2])) if match is not None else None


def lack(binary: Path | str, text: str, needed: Version | None) -> str | None:
    """What an Envoy that calls itself so lacks, with the remedy; None: nothing, or it does not say its version."""
    version = version_in(text)
    if version is None or needed is None or version >= needed:
        return None
    wanted = ".".join(map(str, needed))
    return (
        f"{binary} is Envoy {'.'.join(map(str, version))}, and pipelines with `overload: shed` need {wanted} or later, which refills "
        f"limits continuously. Fix: install Envoy {wanted} or later, or set `overload: queue`"
    )
