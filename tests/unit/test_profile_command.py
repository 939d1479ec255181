"""The command lines of `themis profile` and `themis probe`: what is wrong is said before anything is started; a signal cleans up."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from themis_triton.adapters.triton.arrays import read_arrays
from themis_triton.commands.bench_place import BenchFlags, models_of, resolve
from themis_triton.commands.interruptible import run_interruptible
from themis_triton.commands.profile_command import ProfileFlags, profile_command
from themis_triton.core.errors import SettingsError
from themis_triton.profile.inputs import InputOptions
from themis_triton.profile.measure import Accuracy
from themis_triton.settings.measured import PointSettings

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
OCR = ROOT / "examples" / "ocr" / "ocr.yaml"
LONG_S = 20.0


def test_a_pipeline_stands_for_its_models() -> None:
    assert models_of("ocr", resolve(BenchFlags(config=OCR))) == ("ocr-detect", "ocr-classify", "ocr-recognise")


def test_a_name_that_is_neither_model_nor_pipeline_is_told_what_there_is() -> None:
    with pytest.raises(
        SettingsError, match=r"ocr: .* has no such model \(models: .*video-detector.*; pipelines: none, without -c SETTINGS\)"
    ):
        models_of("ocr", resolve(BenchFlags(repository=REPOSITORY)))
    with pytest.raises(SettingsError, match=r"unknown: .* has no such model .*; pipelines: ocr\)"):
        models_of("unknown", resolve(BenchFlags(config=OCR)))


def test_a_model_whose_only_configuration_is_the_named_one_is_there(tmp_path: Path) -> None:
    custom = tmp_path / "models" / "detector" / "configs" / "h100.pbtxt"
    custom.parent.mkdir(parents=True)
    custom.write_text("max_batch_size: 4")
    surface = "{form: contention, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 1}"
    launch = "launch: {slots: [cpu:0], model_repository: models, model_config_name: h100}"
    path = tmp_path / "themis.yaml"
    path.write_text(
        f"models: {{detector: {{max_batch: 4, profile: {{surface: {surface}}}}}}}\n"
        f"pipelines: {{one: {{model: detector, slo_ms: 300}}}}\n{launch}\n"
    )
    assert models_of("detector", resolve(BenchFlags(config=path))) == ("detector",)
    bare = BenchFlags(repository=tmp_path / "models", config_name="h100")
    assert models_of("detector", resolve(bare)) == ("detector",)
    with pytest.raises(SettingsError, match="no such model"):
        models_of("detector", resolve(replace(bare, config_name=None)))
    server = replace(bare, server="127.0.0.1:1")
    assert models_of("detector", resolve(server)) == ("detector",)


def test_a_model_on_a_server_elsewhere_is_asked_for_there() -> None:
    assert models_of("far-away", resolve(BenchFlags(server="127.0.0.1:1"))) == ("far-away",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (BenchFlags(device="tpu:0"), "--device: tpu:0 is invalid: expected gpu:N"),
        (BenchFlags(reach="tpu:0"), "--reach: tpu:0 is invalid: expected gpu:N"),
        (BenchFlags(reach="cpu:0"), "--reach: cpu:0 is invalid: expected another cpu device than cpu:0"),
        (BenchFlags(reach="gpu:1"), "--reach: gpu:1 is invalid: expected another cpu device than cpu:0"),
        (BenchFlags(slot="left"), "--slot: left is unknown: no settings with a `launch` section are given"),
        (BenchFlags(config=OCR, slot="left"), "--slot: left is invalid: expected a slot of the settings: cpu-0"),
    ],
)
def test_a_place_that_is_none(flags: BenchFlags, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(flags)


def test_a_scratch_server_may_use_the_devices_that_the_settings_give_or_the_flag(tmp_path: Path) -> None:
    def reach(servers: str, launch: str, flag: str | None = None) -> tuple[str, ...]:
        file = tmp_path / "themis.yaml"
        file.write_text(
            f"servers:\n  first: {{grpc: 127.0.0.1:8001, http: 127.0.0.1:8000, metrics: 127.0.0.1:8002, {servers}}}\n"
            f"launch: {{slots: [cpu:3], {launch}}}\n"
            "models:\n  video-detector: {profile: {surface: {form: cores, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 1}}}\n"
            "pipelines:\n  video: {stages: [video-detector], slo_ms: 300}\n"
        )
        return resolve(BenchFlags(config=file, repository=REPOSITORY, reach=flag)).launch.reach_from("cpu:3")

    assert reach("device: cpu:0", "") == ()
    assert reach("device: cpu:0", "reach: [cpu:3, cpu:4]") == ("cpu:4",)
    assert reach("device: cpu:0", "reach: [cpu:3, cpu:4]", "cpu:9") == ("cpu:9",)
    assert reach("devices: [cpu:0, cpu:1]", "") == ("cpu:0", "cpu:1"), "an adopted server's devices need the probe too"


@pytest.mark.parametrize(
    ("server", "max_batch", "message"),
    [
        (None, 9, "--max-batch: 9 is invalid: expected at most 8, the max_batch_size of model video-detector"),
        ("127.0.0.1:999999", None, "--server: 127.0.0.1:999999 is invalid: expected HOST:PORT"),
        ("nobody", None, "--server: nobody is invalid: expected HOST:PORT of Triton's gRPC, or a server of the settings"),
    ],
)
def test_a_wrong_flag_is_said_before_a_server_is_started(tmp_path: Path, server: str | None, max_batch: int | None, message: str) -> None:
    flags = ProfileFlags("video-detector", tmp_path, max_batch, None, 0.04, 40, Accuracy(), InputOptions())
    with pytest.raises(SettingsError, match=message):
        profile_command(flags, BenchFlags(repository=REPOSITORY, server=server, state_directory=tmp_path / "state"), as_json=False)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (InputOptions(shapes={"video-detekt.INPUT": (3,)}), "--shape: video-detekt.INPUT is invalid: expected an input of video-detector"),
        (InputOptions(file=Path("absent.npz")), "absent.npz: cannot be read"),
    ],
)
def test_wrong_inputs_are_said_before_a_server_is_started(tmp_path: Path, inputs: InputOptions, message: str) -> None:
    flags = ProfileFlags("video-detector", tmp_path, None, None, 0.04, 40, Accuracy(), inputs)
    with pytest.raises(SettingsError, match=message):
        profile_command(flags, BenchFlags(repository=REPOSITORY, state_directory=tmp_path / "state"), as_json=False)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("content", [b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_file_of_arrays_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"a\.npz: cannot be read .*: expected an \.npz file"):
        read_arrays(file)
    np.save(tmp_path / "b.npy", np.ones(3))
    with pytest.raises(SettingsError, match=r"b\.npy: cannot be read"):
        read_arrays(tmp_path / "b.npy")


def test_a_folder_that_cannot_be_written_is_said_before_a_server_is_started(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    flags = ProfileFlags("video-detector", tmp_path / "file" / "out", None, None, 0.04, 40, Accuracy(), InputOptions())
    with pytest.raises(SettingsError, match=r"--out .*file/out: .* cannot be written .*. Fix: give a writable folder"):
        profile_command(flags, BenchFlags(repository=REPOSITORY, state_directory=tmp_path / "state"), as_json=False)


def test_a_high_percentile_gets_the_samples_that_it_needs_and_what_is_loose_is_known() -> None:
    assert Accuracy().sample_limit == 2000
    assert Accuracy(percentile=99.9).sample_limit > 7000
    point = PointSettings(
        batch=1, instances=1, samples=9, service_ms=100, low_ms=98, high_ms=104, mean_ms=99, median_ms=99,
        statistics_ms=99, queue_ms=0, client_ms=101, outliers=0,
    )  # fmt: skip
    assert Accuracy(precision=0.03).misses(point)
    assert not Accuracy(precision=0.05).misses(point)
    assert Accuracy(precision=0.05).misses(point.model_copy(update={"high_ms": None}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_work_clean_up(number: signal.Signals) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            async with asyncio.timeout(LONG_S):
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            # A second signal while it cleans up changes nothing.
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
            ended.append("clean")
            raise

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())
    assert ended == ["clean"]
    assert signal.getsignal(number) == before


def test_work_that_ends_gives_its_result_and_errors_pass() -> None:
    async def fine() -> int:
        return 3

    async def fails() -> int:
        raise SettingsError("no")

    assert run_interruptible(fine()) == 3
    with pytest.raises(SettingsError, match="no"):
        run_interruptible(fails())
