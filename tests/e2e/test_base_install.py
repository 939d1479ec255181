"""The built wheel with its base packages alone: client commands work, the others name the extra that they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from themis_triton.core.errors import EnvironmentCheckError, ServerError

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280.0
PAGE_FILES = ("index.html", "main.js", "app.css", "vendor/uPlot.iife.min.js", "vendor/uPlot-LICENSE.txt")


@pytest.fixture(scope="module")
def themis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment that has the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True, timeout=TIMEOUT_S, env=environment)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert {f"themis_triton/page/{name}" for name in PAGE_FILES} <= set(packed.namelist())
    install = [*pip, "--python", str(python), "install", "-c", str(ROOT / "requirements.lock"), str(wheel)]
    subprocess.run(install, check=True, timeout=TIMEOUT_S, env=environment)
    return folder / "venv" / "bin" / "themis"


def run(themis: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([themis, *words], cwd=folder, capture_output=True, text=True, timeout=30.0, check=False, env=environment)


def test_client_commands_need_the_base_alone(themis: Path, tmp_path: Path) -> None:
    assert "history" in run(themis, tmp_path, "--help").stdout
    assert run(themis, tmp_path, "init").returncode == 0
    assert (tmp_path / "themis.yaml").is_file()
    assert json.loads(run(themis, tmp_path, "schema").stdout)["properties"]["pipelines"]
    validated = run(themis, tmp_path, "validate", "themis.yaml")
    assert "themis-triton[sidecar]" not in validated.stdout + validated.stderr
    status = run(themis, tmp_path, "status", "-c", "themis.yaml")
    assert (status.returncode, "No sidecar is running" in status.stderr) == (ServerError.exit_code, True), status.stderr
    history = run(themis, tmp_path, "history", "-c", "themis.yaml")
    assert (history.returncode, "no such file" in history.stderr) == (EnvironmentCheckError.exit_code, True), history.stderr


@pytest.mark.parametrize("words", [("run", "-c", "themis.yaml"), ("plan", "-c", "themis.yaml", "--rate", "10"), ("warm",)])
def test_other_commands_name_their_extra(themis: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    run(themis, tmp_path, "init")
    result = run(themis, tmp_path, *words)
    assert result.returncode == EnvironmentCheckError.exit_code, result.stderr
    assert "pip install 'themis-triton[sidecar]'" in result.stderr
