"""The registry of launchers: every kind of the settings has one, and what was launched is found and stopped through the port."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar, Self

import pytest

from themis_triton.adapters.launchers import LAUNCHERS, bare_launchers, build_launcher, stop_all
from themis_triton.adapters.local import launcher
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.remote_launcher import RemoteLauncher
from themis_triton.adapters.server_files import ServerFiles, build_view
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LaunchConfig, LaunchKind, LocalLaunchConfig
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, ServerError, SettingsError, WarmupFailedError
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped


def test_every_kind_has_its_configuration_and_its_launcher(tmp_path: Path) -> None:
    assert len(LAUNCHERS) == len(LaunchKind)
    assert all(issubclass(kind, LaunchConfig) for kind in LAUNCHERS)
    assert isinstance(build_launcher(LocalLaunchConfig((DeviceSlot("a", "cpu:0"),), tmp_path), tmp_path), LocalLauncher)


def test_what_was_started_is_stopped_without_settings(tmp_path: Path) -> None:
    process = spawn(["/bin/sh", "-c", "sleep 60; :"], {**os.environ, OWNER_VARIABLE: owner_mark(tmp_path)}, tmp_path / "log")
    assert str(process.pid) in asyncio.run(stop_all(tmp_path, 5.0))
    assert find_process(process) is None
    assert asyncio.run(stop_all(tmp_path, 5.0)) == ()
    assert asyncio.run(bare_launchers(tmp_path)[0].discover()) == ()


def test_an_unknown_kind_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    text = (shipped("config") / "themis.yaml").read_text(encoding="utf-8").replace("launch:\n", "launch:\n  kind: docker\n")
    assert "kind: docker" in text
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"launch\.kind: docker is invalid: expected one of local, kubernetes, "):
        load_settings(path)


class EndingWarmup:
    """A warm-up in which model `b` ends its server. `warmed`: what was warmed up, call by call."""

    warmed: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, *_: object) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def warm_all(self, models: Models) -> None:
        self.warmed.append(tuple(models))
        if "b" in models:
            raise ServerError("server new did not answer")


def test_a_model_that_ends_its_server_in_the_warm_up_is_found_by_the_next_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "Warmup", EndingWarmup)
    local = LocalLauncher(LocalLaunchConfig((DeviceSlot("one", "cpu:0"),), tmp_path), tmp_path)
    address = Address("127.0.0.1", 1)
    models = {name: ModelState(1, 1) for name in ("a", "b", "c")}
    ended = Server("new", "cpu:0", address, address, address, Phase.WARMING, launched=True, slot="one", models=models)

    async def work() -> None:
        with pytest.raises(LaunchFailedError, match="server new ended in the warm-up of a, b, c; the next one on this slot") as unknown:
            await local.warm_up(ended)
        assert not isinstance(unknown.value, WarmupFailedError)
        with pytest.raises(WarmupFailedError) as found:
            await local.warm_up(ended)
        assert (found.value.model, found.value.cause) == ("b", "the server's process ended in it")
        assert EndingWarmup.warmed == [("a", "b", "c"), ("a",), ("b",)]

    asyncio.run(work())


@pytest.mark.parametrize(("text", "cause"), [("oops {", "not a Triton model config"), ("ensemble_scheduling { }", "is an ensemble")])
def test_a_configuration_that_cannot_be_launched_is_the_failure_of_its_model(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "models" / "bad").mkdir(parents=True)
    (tmp_path / "models" / "bad" / "config.pbtxt").write_text(text)
    with pytest.raises(ModelFailedError, match=cause) as failure:
        build_view(ServerFiles(tmp_path / "state", "new"), tmp_path / "models", {"bad": ModelState(1, 1)}, {})
    assert failure.value.model == "bad"


class Elsewhere(RemoteLauncher):
    async def is_alive(self, server: Server) -> bool:
        return bool(server)


def test_a_server_that_another_machines_sidecar_launched_gets_a_further_model(tmp_path: Path) -> None:
    """There is no view of its models here yet."""
    repository, state = tmp_path / "models", ModelState(1, 8)
    for model in ("first", "second"):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text(f'name: "{model}"\nbackend: "python"\nmax_batch_size: 8\n')
    address = Address("10.0.0.1", 8001)
    server = Server("one", "ray:1", address, address, address, Phase.SERVING, launched=True, models={"first": state})
    launcher = Elsewhere(LaunchConfig((), repository), tmp_path / "state")
    asyncio.run(launcher.add_model(server, "second", state))
    assert {folder.name for folder in ServerFiles(tmp_path / "state", "one").models.iterdir()} == {"first", "second"}
