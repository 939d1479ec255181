"""The command lines of `themis profile` and `themis probe`: what is wrong is said before anything is started; a signal cleans up."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from themis_triton.commands.interruptible import run_interruptible
from themis_triton.commands.profile_command import BenchFlags, ProfileFlags, models_of, profile_command, resolve
from themis_triton.core.errors import SettingsError
from themis_triton.profile.inputs import InputOptions
from themis_triton.profile.measure import Accuracy

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
OCR = ROOT / "config" / "ocr.yaml"
LONG_S = 20.0


def test_a_pipeline_stands_for_its_models() -> None:
    assert models_of("ocr", resolve(BenchFlags(config=OCR))) == ("ocr-detect", "ocr-classify", "ocr-recognise")


def test_a_name_that_is_neither_model_nor_pipeline_is_told_what_there_is() -> None:
    with pytest.raises(SettingsError, match=r"ocr: no such model in .* \(models: .*ocr-detect.*; pipelines: none, without -c SETTINGS\)"):
        models_of("ocr", resolve(BenchFlags(repository=REPOSITORY)))
    with pytest.raises(SettingsError, match=r"nobody: no such model .*; pipelines: ocr\)"):
        models_of("nobody", resolve(BenchFlags(config=OCR)))


def test_a_model_on_a_server_elsewhere_is_asked_for_there() -> None:
    assert models_of("far-away", resolve(BenchFlags(server="127.0.0.1:1"))) == ("far-away",)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (BenchFlags(device="tpu:0"), "--device tpu:0: allowed is gpu:N or cpu:N"),
        (BenchFlags(config=OCR, slot="left"), "--slot left: not a slot of the settings; there are cpu-0"),
    ],
)
def test_a_place_that_is_none(flags: BenchFlags, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        resolve(flags)


@pytest.mark.parametrize(
    ("server", "max_batch", "said"),
    [
        (None, 9, "--max-batch 9: model video-detector takes batches of at most 8"),
        ("nobody", None, "--server nobody: allowed is HOST:PORT of Triton's gRPC, or a server of the settings"),
    ],
)
def test_a_wrong_flag_is_said_before_a_server_is_started(tmp_path: Path, server: str | None, max_batch: int | None, said: str) -> None:
    flags = ProfileFlags("video-detector", tmp_path, max_batch, None, 0.04, 40, Accuracy(), InputOptions())
    with pytest.raises(SettingsError, match=said):
        profile_command(flags, BenchFlags(repository=REPOSITORY, server=server, state_directory=tmp_path / "state"), as_json=False)
    assert not (tmp_path / "state").exists()


def test_sigterm_lets_the_work_clean_up() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(LONG_S):
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            # A second signal while it cleans up changes nothing.
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            ended.append("clean")
            raise

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())
    assert ended == ["clean"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_that_ends_gives_its_result_and_errors_pass() -> None:
    async def fine() -> int:
        return 3

    async def fails() -> int:
        raise SettingsError("no")

    assert run_interruptible(fine()) == 3
    with pytest.raises(SettingsError, match="no"):
        run_interruptible(fails())
