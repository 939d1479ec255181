"""The session of docs/index.md, command by command, on a real Triton and Envoy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from tests.documents import blocks, session, session_settings
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports

pytestmark = pytest.mark.e2e
COMMAND_TIMEOUT_S = 120.0
START_TIMEOUT_S = 240.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the session's settings on free ports; whatever the session leaves is ended."""
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    addresses = {"envoy": {"grpc_listen": grpc, "http_listen": http}, "status": {"address": status}}
    text = session_settings() + yaml.safe_dump(addresses)
    (tmp_path / "themis.yaml").write_text(text, encoding="utf-8")
    yield tmp_path
    stop_everything(tmp_path / ".themis", timeout_s=1.0)


def themis(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "themis_triton.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)


@contextmanager
def started(folder: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, killed at the end if it still runs."""
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "themis_triton.cli", *arguments], cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(COMMAND_TIMEOUT_S)


def wait_until_serving(folder: Path, sidecar: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert sidecar.poll() is None, (folder / "run.log").read_text()
        result = themis(folder, "status", "-c", "themis.yaml", "--json")
        if result.returncode == 0 and any(server["phase"] == "serving" for server in json.loads(result.stdout)["servers"]):
            return
        time.sleep(0.5)
    pytest.fail(f"no server serves:\n{(folder / 'run.log').read_text()}")


def test_the_session_of_the_first_page(folder: Path) -> None:
    outputs: dict[str, str] = {}
    with ExitStack() as stack:
        for line, words in zip(session().text.splitlines(), session().commands, strict=True):
            assert words[0] == "themis"
            if line.endswith("&"):
                sidecar = stack.enter_context(started(folder, words[1:]))
                wait_until_serving(folder, sidecar)
                continue
            result = themis(folder, *words[1:])
            assert result.returncode == 0, f"{line}:\n{result.stdout}{result.stderr}"
            outputs[" ".join(words[1:])] = result.stdout
        assert sidecar.wait(COMMAND_TIMEOUT_S) == 0
    assert "is valid" in outputs["validate -c themis.yaml"]
    assert "video" in outputs["status -c themis.yaml"]
    assert "launch" in outputs["history -c themis.yaml"]
    assert outputs["why -c themis.yaml"].strip()
    assert left_behind(folder) == []


def left_behind(folder: Path) -> list[str]:
    """Processes that name the folder on their command line."""
    processes = psutil.process_iter(["cmdline", "name"])
    return [process.info["name"] for process in processes if any(str(folder) in word for word in process.info["cmdline"] or [])]


def simulations() -> list[list[str]]:
    return [words for block in blocks() if block.language == "console" for words in block.commands if words[:2] == ["themis", "simulate"]]


@pytest.mark.parametrize("words", simulations(), ids=" ".join)
def test_simulations_of_the_documents_run(words: list[str], folder: Path) -> None:
    result = themis(folder, *words[1:])
    assert result.returncode == 0, result.stderr
    assert "themis" in result.stdout
