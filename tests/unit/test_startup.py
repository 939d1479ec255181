"""The client commands load little: each is checked by what a fresh process has imported when it ends."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_group

from tests.unit.samples import action, record, server, snapshot
from themis_triton import cli
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.action import ActionKind
from themis_triton.core.errors import SettingsError
from themis_triton.settings.examine import checked_runtime_paths
from themis_triton.settings.runtime import RuntimePaths, load_runtime_paths
from themis_triton.settings.shipped import shipped

HEAVY = (
    "numpy",
    "numba",
    "grpc",
    "tritonclient",
    "aiohttp",
    "httpx",
    "matplotlib",
    "asyncio",
    "psutil",
    "themis_triton.core.config",
    "themis_triton.settings.schema",
)
PROGRAM = f"""
import sys
from themis_triton import cli
try:
    cli.main()
finally:
    sys.stderr.write("loaded: " + " ".join(sorted(set({HEAVY!r}) & set(sys.modules))))
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Settings whose journal has one change; no sidecar runs."""
    path = tmp_path / "themis.yaml"
    path.write_text(f"state_directory: state\nstatus: {{address: 127.0.0.1:{free_ports(1)[0]}}}\n")
    journal = Journal(tmp_path / "state" / "journal.sqlite")
    journal.record_tick(record(action(ActionKind.GROW), seen=snapshot([server("a")])))
    journal.close()
    return path


@pytest.mark.parametrize(
    ("command", "code"),
    [("status", 4), ("top", 3), ("why", 0), ("history", 0), ("pause", 0), ("resume", 0), ("stop", 0), ("--help", 0), ("--version", 0)],
)
def test_a_client_command_loads_no_heavy_package(command: str, code: int, settings_file: Path) -> None:
    words = [command] if command.startswith("-") else [command, "-c", str(settings_file)]
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines()[-1] == "loaded: "


@pytest.mark.parametrize(("typed", "offered"), [("themis sta", {"status"}), ("themis pl", {"plan"}), ("themis pin --in", {"--instances"})])
def test_completion_in_the_shell_loads_no_heavy_package(typed: str, offered: set[str]) -> None:
    environment = os.environ | {"_THEMIS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    program = f"import sys; sys.argv = ['themis']\n{PROGRAM}"
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, set(ended.stdout.split()), ended.stderr) == (0, offered, "loaded: ")


def test_a_called_command_is_declared_alone_and_any_other_word_brings_all() -> None:
    names = set(get_group(cli.app).commands)
    assert all(set(get_group(cli._application([name])).commands) == {name} for name in names)
    assert {"status", "envoy-bootstrap", "simulate"} <= names
    assert cli._application([]) is cli._application(["statsu"]) is cli._application(["--help"]) is cli.app


def outcome(read: Callable[[Path], RuntimePaths], path: Path) -> RuntimePaths | str:
    try:
        return read(path)
    except SettingsError as error:
        return str(error)


@pytest.mark.parametrize(
    "text",
    [
        "models: {}\n",
        "state_directory: /var/x\nmodels: [\n",
        "state_directory: a\nstate_directory: b\n",
        "status: {address: '127.0.0.1:1', address: '127.0.0.1:2'}\n",
        "status: {address: 'localhost:1'}\n",
        "status: {address: '0.0.0.0:1'}\n",
        "status: {address: '0.0.0.0:1', allow_non_loopback: true}\n",
        "status: {address: '[::1]:9180', allow_non_loopback: false}\n",
        "status: {address: '127.0.0.1:1', allow_non_loopback: 3}\n",
        "status: {port: 1}\n",
        "status: \n",
        "state_directory: 3\n",
        "base: &b {address: '127.0.0.1:4'}\nstatus: {<<: *b}\n",
        "[1]\n",
        "",
        "\ufeffstate_directory: a\n",
    ],
)
def test_the_quick_reading_of_two_settings_equals_the_schemas(text: str, tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(text, encoding="utf-8")
    assert outcome(load_runtime_paths, path) == outcome(checked_runtime_paths, path)


@pytest.mark.parametrize("path", sorted((shipped("config")).glob("*.yaml")), ids=lambda path: path.name)
def test_the_quick_reading_of_the_shipped_settings_equals_the_schemas(path: Path) -> None:
    assert load_runtime_paths(path) == checked_runtime_paths(path)


BASE_ONLY = """
import sys
from importlib.abc import MetaPathFinder
from themis_triton import cli

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in cli.SIDECAR_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
cli.main()
"""


@pytest.mark.parametrize("command", ["validate", "init", "schema", "plan", "run"])
def test_the_base_install_runs_the_client_commands_and_names_the_extra_of_the_others(command: str, tmp_path: Path) -> None:
    config = str(shipped("config") / "themis.yaml")
    words = {
        "validate": (config,),
        "init": (str(tmp_path / "new.yaml"),),
        "schema": (),
        "plan": ("-c", config, "--rate", "10"),
        "run": ("-c", config),
    }
    program = [sys.executable, "-c", BASE_ONLY, command, *words[command]]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    if command in {"plan", "run"}:
        assert ended.returncode == 3, ended.stderr
        assert ended.stderr.rstrip().endswith("Fix: pip install 'themis-triton[sidecar]'")
    else:
        assert ended.returncode == 0, ended.stderr
