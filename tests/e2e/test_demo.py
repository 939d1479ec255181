"""`themis demo` as a user runs it: a surge to its end, and Ctrl-C in the middle of one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import yaml

from themis_triton.adapters.process_end import owned_processes
from themis_triton.demo.frame import DemoSummary

pytestmark = pytest.mark.e2e

# Kernels are compiled at the first start after they changed.
START_TIMEOUT_S = 200.0
INTERRUPT_TIMEOUT_S = 20.0
POLL_S = 0.1


def demo_command(out: Path, duration_s: int) -> list[str]:
    return [sys.executable, "-m", "themis_triton.cli", "demo", "--duration", str(duration_s), "--json", "--out", str(out)]


def left_over(out: Path) -> list[int]:
    return [process.pid for state in ("adopted", "state") for process in owned_processes(out / state)]


def test_a_surge_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    ended = subprocess.run(demo_command(out, 25), capture_output=True, text=True, timeout=START_TIMEOUT_S + 60.0, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert set(summary) == {field.name for field in fields(DemoSummary)}
    assert (summary["policy"], summary["failed"]) == ("themis", 0)
    assert summary["requests"] > 500
    assert summary["max_instances"] > 2
    assert summary["actions"]["grow"] >= 1
    assert 0.0 < summary["slo_attainment"] <= 1.0
    assert summary["instance_seconds"] >= 25 * 2 * 0.8
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "summary.json").read_text()) == summary
    assert left_over(out) == []


def test_ctrl_c_in_the_middle_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with (tmp_path / "words").open("w+b") as words:
        demo = subprocess.Popen(demo_command(out, 60), stdout=words, stderr=words, start_new_session=True)
        try:
            wait_until(lambda: arrivals(out) > 0, demo)
            assert left_over(out) != []
            begin_s = time.monotonic()
            demo.send_signal(signal.SIGINT)
            assert demo.wait(INTERRUPT_TIMEOUT_S) == 130, (tmp_path / "words").read_text(errors="replace")
            assert time.monotonic() - begin_s < INTERRUPT_TIMEOUT_S
            assert left_over(out) == []
        finally:
            demo.kill()
            demo.wait(10.0)


def wait_until(holds: Callable[[], bool], demo: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not holds():
        assert demo.poll() is None, f"the demo ended with {demo.returncode}"
        assert time.monotonic() < deadline_s, f"no request within {START_TIMEOUT_S:g} s"
        time.sleep(POLL_S)


def arrivals(out: Path) -> float:
    """The rate that the demo's sidecar sees; 0 while there is none."""
    try:
        address = yaml.safe_load((out / "themis.yaml").read_text())["status"]["address"]
        pipelines = httpx.get(f"http://{address}/v1/status", timeout=5.0, trust_env=False).json()["pipelines"]
    except (OSError, TypeError, httpx.TransportError):
        return 0.0
    return float(pipelines[0]["estimate"]["recent_rps"]) if pipelines and pipelines[0]["estimate"] else 0.0
