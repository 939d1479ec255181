"""The process start of an emulated server: counted from the start of its process, so that it is paid once."""

from __future__ import annotations

import os

import psutil
import pytest

from themis_triton.emulation import process_start
from themis_triton.emulation.process_start import PROCESS_START_VARIABLE, process_age_s, process_start_left_s, process_start_s

NO_PROCESS = 2**22 + 1


@pytest.mark.parametrize(
    ("environment", "seconds"), [({}, 0.0), ({PROCESS_START_VARIABLE: ""}, 0.0), ({PROCESS_START_VARIABLE: "20"}, 20.0)]
)
def test_the_duration_comes_from_the_environment(environment: dict[str, str], seconds: float) -> None:
    assert process_start_s(environment) == seconds


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "20 s"])
def test_an_invalid_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"THEMIS_EMULATED_PROCESS_START_S: '{text}' is invalid: expected a number of seconds from 0"):
        process_start_s({PROCESS_START_VARIABLE: text})


def test_the_age_of_a_process_counts_from_its_start() -> None:
    own, parent = psutil.Process(), psutil.Process(os.getppid())
    elder_s = own.create_time() - parent.create_time()
    assert process_age_s(parent.pid) - process_age_s(own.pid) == pytest.approx(elder_s, abs=1.0)
    with pytest.raises(ProcessLookupError, match=f"process {NO_PROCESS} does not run"):
        process_age_s(NO_PROCESS)


@pytest.mark.parametrize(("age_s", "left_s"), [(0.5, 19.5), (20.0, 0.0), (300.0, 0.0)])
def test_an_instance_waits_for_the_rest_only(age_s: float, left_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_start, "process_age_s", {7: age_s}.__getitem__)
    assert process_start_left_s(7, {PROCESS_START_VARIABLE: "20"}) == left_s
    assert process_start_left_s(7, {}) == 0.0
