"""How much memory this process and its children may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the smallest limit of the control groups of this process; `root`: where `/proc` and `/sys` are."""
    return min([psutil.virtual_memory().total, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of this process's groups and of those above them. A container may see its own group as the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in {top, group, *(parent for parent in group.parents if parent.is_relative_to(top))}:
            with suppress(OSError, ValueError):  # "max", or a group that is not seen from here
                yield int((folder / name).read_text())
