"""The connection to a Ray cluster, lost and made again, and the guardian of a server that lost its supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from themis_triton.adapters.process_end import kill_process
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.ray import cluster
from themis_triton.adapters.ray.cluster import RayCluster
from themis_triton.adapters.ray.guardian import guard
from themis_triton.adapters.ray.launcher import RayLauncher
from themis_triton.adapters.ray.orders import server_of
from themis_triton.core.config import RayLaunchConfig
from themis_triton.core.errors import ServerError

WAIT_S = 20.0
RUNNING = {"name": "one", "device": "ray:1", "slot": "ray-1", "models": {}, "launch": "5d1f"}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayLaunchConfig]:
    """What the driver does at each of its starts."""
    folder = tmp_path / "orders"
    folder.mkdir()
    monkeypatch.setenv("THEMIS_DRIVER_DOUBLE", str(folder))
    monkeypatch.setattr(cluster, "_DRIVER", "tests.unit.ray_driver_double")
    monkeypatch.setattr(cluster, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def written(*modes: str) -> RayLaunchConfig:
        for number, mode in enumerate(modes):
            (folder / f"{number}-{mode}").touch()
        return RayLaunchConfig((), tmp_path, address="10.0.0.1:6379")

    return written


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - the log has no event to wait for
            await asyncio.sleep(0.01)


def test_a_lost_cluster_is_told_once_and_found_again_and_its_servers_count_as_alive_meanwhile(
    tmp_path: Path, script: Callable[..., RayLaunchConfig]
) -> None:
    async def work(logs: list[dict[str, object]]) -> None:
        launcher = RayLauncher(script("end", "refuse", "refuse"), tmp_path)
        server = server_of(RUNNING)
        assert await launcher.is_alive(server)
        await until(lambda: [each["event"] for each in logs].count("ray_reachable") == 2)
        assert await launcher.is_alive(server)
        assert not await launcher.is_alive(server_of(RUNNING | {"launch": "another"}))
        await launcher.close()

    with capture_logs() as logs:
        asyncio.run(work(logs))  # type: ignore[arg-type]
    assert [each["event"] for each in logs] == ["ray_reachable", "ray_unreachable", "ray_reachable"]


def test_a_cluster_that_does_not_answer_is_told_with_its_address(tmp_path: Path, script: Callable[..., RayLaunchConfig]) -> None:
    async def work() -> None:
        config = script(*["refuse"] * 9)
        connection = RayCluster(config, tmp_path / "log")
        with pytest.raises(ServerError, match=r"ray\.address: the cluster at 10\.0\.0\.1:6379 does not answer \(Ray: .*no head"):
            await connection.call("nodes")
        assert connection.supervisors is None
        await connection.close()

    asyncio.run(work())


def test_servers_end_with_their_supervisor_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    mark = {**os.environ, OWNER_VARIABLE: owner_mark(folder)}
    triton = spawn(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"], mark, tmp_path / "log")
    supervisor, node = (spawn(["/bin/sleep", "60"], os.environ, tmp_path / "log") for _ in range(2))
    guardian = threading.Thread(target=guard, args=(folder, 0.1, [supervisor, node]))
    guardian.start()
    assert find_process(triton) is not None
    kill_process(node)
    guardian.join(WAIT_S)
    assert not guardian.is_alive()
    until_s = time.monotonic() + WAIT_S
    while any(find_process(each) is not None for each in (triton, supervisor, node)) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert [find_process(each) for each in (triton, supervisor, node)] == [None] * 3
    assert not folder.exists()


BLOCKED = """\
import asyncio, sys, time
import ray
from themis_triton.adapters.ray import driver

def init(**_):
    print("waits", file=sys.stderr, flush=True)
    time.sleep(1000)

ray.init = init
asyncio.run(driver.run())
"""


def test_the_driver_of_a_killed_sidecar_ends_though_it_waits_for_a_head_that_does_not_answer() -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    pipe, request = subprocess.PIPE, {"id": 1, "call": "connect", "arguments": {"address": "127.0.0.1:1", "namespace": "themis"}}
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe) as driver:
        assert driver.stdin is not None
        assert driver.stderr is not None
        try:
            driver.stdin.write(json.dumps(request).encode() + b"\n")
            driver.stdin.flush()
            assert any(line == b"waits\n" for line in driver.stderr)
            driver.stdin.close()
            assert driver.wait(WAIT_S) == 0
        finally:
            driver.kill()
