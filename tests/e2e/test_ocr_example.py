"""The OCR example as its README has it: the sidecar launches the server, and read_text.py reads an image through Envoy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import httpx
import pytest
import yaml

from ocr_pipeline.sample import SAMPLE_LINES, render_sample
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import spawn
from themis_triton.adapters.sockets import free_ports

pytestmark = pytest.mark.e2e
EXAMPLE = Path(__file__).parents[2] / "examples" / "ocr"
START_TIMEOUT_S = 200.0


def test_the_examples_settings_serve_text_through_envoy(tmp_path: Path) -> None:
    ports = [f"127.0.0.1:{port}" for port in free_ports(4)]
    settings = yaml.safe_load((EXAMPLE / "ocr.yaml").read_text(encoding="utf-8"))
    settings["state_directory"] = str(tmp_path / "state")
    settings["launch"]["model_repository"] = str(EXAMPLE / settings["launch"]["model_repository"])
    settings["envoy"] = dict(zip(("grpc_listen", "http_listen", "admin"), ports, strict=False))
    settings["status"] = {"address": ports[3]}
    path, image = tmp_path / "themis.yaml", tmp_path / "page.png"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    cv2.imwrite(str(image), render_sample())
    sidecar = spawn([sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)], dict(os.environ), tmp_path / "daemon.log")
    try:
        _until_serving(f"http://{ports[3]}/v1/status", tmp_path / "daemon.log")
        command = [sys.executable, str(EXAMPLE / "read_text.py"), str(image), "--address", ports[0], "--json"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert [line["text"] for line in json.loads(output.splitlines()[-1])] == list(SAMPLE_LINES)
    finally:
        process = find_process(sidecar)
        if process is not None:
            process.kill()
            process.wait(10)
        stop_everything(tmp_path / "state", 5.0)


def _until_serving(url: str, log_file: Path) -> None:
    """The sidecar finds no server, so it launches the first one by itself."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            status = httpx.get(url, timeout=2.0, trust_env=False).json()
        except httpx.HTTPError:
            status = {"servers": []}
        if any(server["phase"] == "serving" for server in status["servers"]):
            return
        time.sleep(0.2)
    raise AssertionError(f"no server serves after {START_TIMEOUT_S:g} s:\n{log_file.read_text(encoding='utf-8')[-3000:]}")
