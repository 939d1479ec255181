"""`themis probe` on a real Triton: counts change in place, batching reloads, a failed load is harmless."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY
from tests.e2e.rounds import measured_again_if_disturbed
from themis_triton.adapters.process_end import owned_processes, stop_everything
from themis_triton.commands.bench_place import BenchFlags
from themis_triton.commands.probe_command import probe_command
from themis_triton.core.errors import SettingsError
from themis_triton.profile.files import read_profile, replace_profile
from themis_triton.profile.probe import ProbeOptions
from themis_triton.settings.measured import CHANGES
from themis_triton.settings.profile import ProfileSettings, TableSettings

pytestmark = pytest.mark.e2e

MODEL = "video-classifier"
INIT_S = 0.5
PROFILES = REPOSITORY.parent / "benchmarks" / "results" / "profile"
PROFILE = ProfileSettings(table=TableSettings(batches=[1], instances=[1], latency_ms=[[18.0]]), instance_init_s=0.5)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[BenchFlags]:
    try:
        yield BenchFlags(repository=REPOSITORY, reach="cpu:1", state_directory=tmp_path / "state")
    finally:
        stop_everything(tmp_path / "state" / "profile", timeout_s=5.0)


@measured_again_if_disturbed
def test_the_levers_of_the_python_backend(tmp_path: Path, where: BenchFlags) -> None:
    path = tmp_path / f"{MODEL}.yaml"
    replace_profile(path, PROFILE)
    probe_command(MODEL, tmp_path, ProbeOptions(many=2, calm_s=0.5), where, as_json=False)
    profile = read_profile(path)
    assert profile.table == PROFILE.table
    operations = profile.operations
    assert operations is not None
    assert operations.proven == dict.fromkeys(CHANGES, True)
    assert operations.add_one is not None
    assert operations.remove_one is not None
    assert operations.add_many is not None
    assert operations.add_device is not None
    assert operations.remove_device is not None
    assert operations.rebatch is not None
    assert operations.load_failure is not None
    assert [name for name, operation in operations if not operation.in_place] == ["rebatch"]
    assert INIT_S < operations.add_many.duration_s < 2 * operations.add_one.duration_s, "instances initialise in parallel"
    assert INIT_S < operations.add_device.duration_s < 2 * operations.add_one.duration_s, "one initialisation"
    assert operations.add_device.memory_peak > operations.remove_one.memory_peak / 2 > 0
    assert operations.rebatch.memory_peak > 1.2 * operations.add_many.memory_peak, "old and new instances at once"
    assert operations.load_failure.errors == 0
    assert "no-such-backend" in str(operations.load_failure.refused)
    assert not owned_processes(tmp_path / "state" / "profile")


def test_a_profile_of_something_else_is_not_given_operations(tmp_path: Path, where: BenchFlags) -> None:
    path = tmp_path / f"{MODEL}.yaml"
    other = read_profile(PROFILES / "video-detector.yaml")
    replace_profile(path, other)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=r"conditions \(model 'video-detector', now 'video-classifier'; config_hash .*measure it again"):
        probe_command(MODEL, tmp_path, ProbeOptions(), where, as_json=False)
    assert path.read_bytes() == before


def test_without_a_profile_there_is_nowhere_to_write(tmp_path: Path, where: BenchFlags) -> None:
    with pytest.raises(SettingsError, match=r"video-classifier.yaml: cannot be read .*themis profile"):
        probe_command(MODEL, tmp_path, ProbeOptions(), where, as_json=False)
