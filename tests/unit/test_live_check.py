"""Checks of `validate --live` that need no server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, config
from themis_triton.adapters import live_check
from themis_triton.adapters.live_check import _check_callers, _check_repository
from themis_triton.adapters.local.check import check_launch, inotify_instances
from themis_triton.adapters.triton.abilities import NEEDED_EXTENSIONS, lacking_extensions, lacks_pending
from themis_triton.adapters.triton.config_files import model_folder
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, DeviceSlot, LocalLaunchConfig


def test_the_kernels_limit_is_read_and_absent_elsewhere(tmp_path: Path) -> None:
    assert (inotify_instances() or 0) > 0
    assert inotify_instances(tmp_path / "absent") is None


def test_a_server_without_an_extension_is_named_with_what_is_lost() -> None:
    assert list(lacking_extensions({*NEEDED_EXTENSIONS, "trace"})) == []
    (words,) = lacking_extensions(NEEDED_EXTENSIONS.keys() - {"statistics"})
    assert words.startswith("extension statistics: executed batches are unknown")


@pytest.mark.parametrize(
    ("page", "lacks"),
    [
        (b'nv_inference_request_success{model="a"} 1\n', True),
        (b'nv_inference_request_success{model="a"} 1\nnv_inference_pending_request_count{model="a"} 0\n', False),
        (b"# nothing loaded\n", False),
    ],
)
def test_metrics_without_waiting_requests_are_noticed_where_there_are_models(page: bytes, lacks: bool) -> None:
    assert lacks_pending(page) is lacks


def test_fewer_watches_than_envoy_needs_are_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"first": frozenset(f"model-{number}" for number in range(200))}
    monkeypatch.setattr(live_check, "inotify_instances", lambda: 128)
    assert live_check.check_watches(config(), held) == []
    monkeypatch.setattr(live_check, "inotify_instances", lambda: 60)
    assert live_check.check_watches(config(), {}) == []
    (finding,) = live_check.check_watches(config(), held)
    assert finding.found == "202 models take 74 inotify instances, and a user may have 60 here"
    assert finding.remedy == "raise the limit: sysctl -w fs.inotify.max_user_instances=148"
    guarded = replace(config(), envoy=replace(config().envoy, api_keys=Path("keys")))
    (finding,) = live_check.check_watches(guarded, held)
    assert "take 75 inotify instances" in finding.found
    unmanaged = replace(config(), envoy=replace(config().envoy, managed=False))
    assert live_check.check_watches(unmanaged, held) == []


def test_models_in_any_of_a_server_s_repositories_are_found(tmp_path: Path) -> None:
    settings, folders = config(), [tmp_path / "one", tmp_path / "two"]
    for folder, model in zip(folders, settings.models, strict=True):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text("")
    address = Address("127.0.0.1", 1)
    one = AdoptedServer("first", address, address, address, "cpu:0", model_repository=folders[0])
    (lacking,), (whole,) = (_check_repository(settings, server) for server in (one, replace(one, further_repositories=(folders[1],))))
    assert lacking.found == f"{folders[0]} has no config.pbtxt of {CLASSIFIER}"
    assert "name all of the server's repositories in a list" in lacking.remedy
    assert whole.found == f"{folders[0]} and {folders[1]} have every model's config.pbtxt"
    assert model_folder(replace(one, further_repositories=(folders[1],)), CLASSIFIER) == folders[1] / CLASSIFIER


def test_a_configuration_that_launched_servers_could_not_read_is_named(tmp_path: Path) -> None:
    for name, text in (("good", 'name: "good"'), ("bad", "oops {")):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.pbtxt").write_text(text)
    launch = LocalLaunchConfig((DeviceSlot("cpu-0", "cpu:0"),), tmp_path / "models", binary=tmp_path / "absent")
    binary, bad = asyncio.run(check_launch(launch, ("good", "bad", "without-a-file")))
    assert binary.what == "launch.binary"
    assert (bad.what, bad.remedy) == ("launch: model bad", f"correct {tmp_path / 'models' / 'bad' / 'config.pbtxt'}")


def test_a_caller_that_no_adopted_server_has_is_named() -> None:
    calls = replace(config(), callees={DETECTOR: ("a",), "bls": ("a",), "blz": ("a",)})
    (finding,) = _check_callers(calls, {"server-1": frozenset({"a", "bls"}), "server-2": frozenset()})
    assert (finding.what, finding.remedy) == ("calls.blz", "correct the name of the caller")
    assert _check_callers(calls, {"server-1": frozenset()}) == []
