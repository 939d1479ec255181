"""What Envoy may use of the machine's memory, or of the control group's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.samples import envoy_at
from themis_triton.adapters.envoy.addresses import MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, default_memory_bytes, resolved_config
from themis_triton.adapters.envoy.render import bootstrap
from themis_triton.adapters.machine_memory import memory_limit_bytes
from themis_triton.core.address import Address

GIB = 2**30
TOTAL = psutil.virtual_memory().total


def machine(root: Path, groups: str, **limits: str) -> int:
    """The limit on a machine with these control groups; `limits`: texts of `memory.max` by group, with `__` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for group, text in limits.items():
        folder = root / "sys/fs/cgroup" / group.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{text}\n")
    return memory_limit_bytes(root)


def test_the_smallest_limit_of_the_group_and_those_above_it_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/system/themis\n", system=str(2**20), system__themis="max") == 2**20


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/somewhere/else\n", **{"": str(3 * 2**20)}) == 3 * 2**20


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup/memory/docker"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{2**20}\n")
    (folder.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine(tmp_path, "5:cpu,cpuacct:/docker\n4:memory:/docker\n") == 2**20


def test_without_a_limit_it_is_the_machines_memory(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) == TOTAL
    assert machine(tmp_path, "0::/\n", **{"": "max"}) == TOTAL


@pytest.mark.parametrize(("limit", "expected"), [(GIB // 2, MIN_MEMORY_BYTES), (8 * GIB, 2 * GIB), (1024 * GIB, MAX_MEMORY_BYTES)])
def test_envoy_gets_a_quarter_within_bounds(limit: int, expected: int) -> None:
    assert default_memory_bytes(limit) == expected


@pytest.mark.parametrize("configured", [None, 123_000_000])
def test_the_bound_reaches_envoys_bootstrap_and_a_setting_goes_before(configured: int | None) -> None:
    config = replace(envoy_at(Address("127.0.0.1", 3)), max_memory_bytes=configured)
    written = json.dumps(bootstrap(asyncio.run(resolved_config(config))))
    assert f'"max_heap_size_bytes": {configured or default_memory_bytes(memory_limit_bytes())}' in written
