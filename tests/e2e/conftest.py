"""What the end-to-end tests share: one state directory, and one running server with the emulated video models."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.processes import stop_everything
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server

REPOSITORY = Path(__file__).parents[2] / "model_repository"
VIDEO = {"video-detector": ModelState(2, 8), "video-classifier": ModelState(1, 8)}

Launch = Callable[..., AbstractContextManager[Server]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that measure times need the processor to themselves; the others run two at a time."""
    if "PYTEST_XDIST_WORKER" in os.environ and item.get_closest_marker("exclusive") is not None:
        pytest.fail(f"{item.nodeid} measures times and never runs beside other tests: omit -n, or add -m 'not exclusive'")


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
