"""What the end-to-end tests share: one state directory, and one running server with the emulated video models."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.ray_cluster import SmallCluster, small_cluster
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1] / "model_repository"
VIDEO = {"video-detector": ModelState(2, 8), "video-classifier": ModelState(1, 8)}

SCREENSHOTS = os.environ.get("THEMIS_SCREENSHOTS")
"""A folder to write screenshots, and what commands print, to; nothing is written without it."""

Launch = Callable[..., AbstractContextManager[Server]]


MAX_TESTS_BESIDE_TIMED = 2
SEVERAL_MACHINES = pytest.mark.skipif("THEMIS_CLUSTERS" not in os.environ, reason="tests of several machines run with THEMIS_CLUSTERS=1")
LONGEST_FIRST = (
    "test_emulated_models.py",
    "test_one_shot.py",
    "test_ray.py",
    "test_drift.py",
    "test_slurm.py",
    "test_xds_daemon.py",
    "test_separate.py",
    "test_base_install.py",
    "test_plan_live.py",
    "test_tutorial.py",
    "test_places.py",
    "test_any_model.py",
    "test_sequences.py",
    "test_servers.py",
    "test_port_contracts.py",
    "test_daemon.py",
    "test_envoy_changes.py",
    "test_demo.py",
    "test_probe.py",
    "test_graphs.py",
    "test_faults.py",
)
"""Files with long tests start first, so that no process runs one of them alone in the end. Files not named here follow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {FOLDER / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that measure times leave each other enough of the processor when two run at a time.

    A repeated test starts without what the first attempt left: a client that a failed attempt never closed is no fault of the second.
    """
    if getattr(item, "execution_count", 1) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for kept in ("last_exc", "last_value", "last_traceback"):  # pytest keeps the failure there, and its frames the clients
                vars(sys).pop(kept, None)
            gc.collect()
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > MAX_TESTS_BESIDE_TIMED and item.get_closest_marker("timed") is not None:
        pytest.fail(f"{item.nodeid} measures times: run it with -n {MAX_TESTS_BESIDE_TIMED} at most, or add -m 'not timed'")


@pytest.fixture(scope="session")
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory; whatever was started with it and still runs at the end is ended."""
    directory = tmp_path_factory.mktemp("state")
    try:
        yield directory
    finally:
        stop_everything(directory, timeout_s=2.0)


@pytest.fixture(scope="session")
def fail_init_file(state_directory: Path) -> Iterator[Path]:
    """While this file names a model, no new instance of it initialises, on any server that the tests launch."""
    path = state_directory / "fail-init"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THEMIS_EMULATED_FAIL_INIT_FILE", str(path))
        yield path


@pytest.fixture(scope="session")
def launch_config(fail_init_file: Path) -> LocalLaunchConfig:
    slots = (DeviceSlot("cpu-a", "cpu:0"), DeviceSlot("cpu-b", "cpu:0"))
    return LocalLaunchConfig(slots, REPOSITORY, ready_timeout_s=60.0, warmup_requests=1, drain_timeout_s=10.0)


@pytest.fixture
def launcher(launch_config: LocalLaunchConfig, state_directory: Path) -> LocalLauncher:
    return LocalLauncher(launch_config, state_directory)


@pytest.fixture(scope="session")
def launch(launch_config: LocalLaunchConfig, state_directory: Path) -> Launch:
    """`with launch(name, models, slot="cpu-a") as server:` gives a ready server, stopped at the end."""

    @contextmanager
    def launched(name: str, models: dict[str, ModelState], slot: str = "cpu-a") -> Iterator[Server]:
        servers = LocalLauncher(replace(launch_config, stop_timeout_s=2.0), state_directory)
        server = asyncio.run(servers.launch(name, slot, models))
        try:
            server = asyncio.run(servers.wait_ready(server))
            yield server
        finally:
            asyncio.run(servers.stop(server))

    return launched


@pytest.fixture(scope="session")
def video_server(launch: Launch) -> Iterator[Server]:
    """A ready server with the emulated video models; counts are whatever the last test left, so each test sets its own."""
    with launch("video", VIDEO) as server:
        yield server


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[SmallCluster]:
    """A real Ray cluster with two nodes that have a slot each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with small_cluster(2) as running:
            yield running
