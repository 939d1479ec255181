"""The files of one launched server: its own view of the model repository, and its log."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from themis_triton.adapters.processes import remove_shared_memory, shared_memory_prefix
from themis_triton.adapters.triton.groups import Devices
from themis_triton.adapters.triton.model_config import CONFIG_FILE, for_launch, is_complete, parse_config, render_config
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import ModelState

_CACHE = "__pycache__"


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where the files of a launched server lie; derived from the state directory and the server's name, so that any daemon finds them."""

    state_directory: Path
    name: str

    @property
    def directory(self) -> Path:
        """What goes when the server goes."""
        return self.state_directory / "servers" / self.name

    @property
    def models(self) -> Path:
        """The server's model repository."""
        return self.directory / "models"

    @property
    def log(self) -> Path:
        """The server's output; it stays."""
        return self.state_directory / "logs" / f"{self.name}.log"

    @property
    def shared_memory_prefix(self) -> str:
        """How the names of the Python backend's shared-memory regions begin, unique on this machine."""
        return f"{shared_memory_prefix(self.state_directory)}{self.name}-"

    def log_tail(self, lines: int = 20) -> str:
        """The log's name and last lines, for an error."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as log:
                last = "".join(deque(log, maxlen=lines)).rstrip()
        except FileNotFoundError:
            last = "(no log was written)"
        return f"log {self.log}, last lines:\n{last}"

    def remove(self) -> None:
        """Remove everything but the log; shared memory too, which a killed server leaves behind. Safe to repeat."""
        shutil.rmtree(self.directory, ignore_errors=True)
        remove_shared_memory(self.shared_memory_prefix)


def build_view(
    files: ServerFiles,
    repository: Path,
    models: Mapping[str, ModelState],
    deprioritize_after_s: Mapping[str, float],
    devices: Devices | None = None,
) -> bool:
    """Make the server's own model repository: links to the models' files, and a `config.pbtxt` with the right state from the start.

    Later overrides are made from that very file, so a later change of counts is in place from the first one on. `deprioritize_after_s`
    (by model) and `devices`: see `model_config.for_launch`.

    Returns:
        Whether every configuration is complete, so that Triton need not ask the backends to complete them.

    Raises:
        LaunchFailedError: a model is not in the repository, or the view cannot be written.
        SettingsError: a `config.pbtxt` cannot be parsed.
        ChangeRefusedError: a model cannot have the state.
    """
    try:
        shutil.rmtree(files.models, ignore_errors=True)
        files.models.mkdir(parents=True)
        files.log.parent.mkdir(parents=True, exist_ok=True)
        complete = [
            _build_model(repository / name, files.models / name, state, deprioritize_after_s.get(name), devices)
            for name, state in models.items()
        ]
    except OSError as error:
        raise LaunchFailedError(f"server {files.name}: its files cannot be written to {files.directory}: {error}") from error
    return all(complete)


def _build_model(source: Path, target: Path, state: ModelState, deprioritize_after_s: float | None, devices: Devices | None) -> bool:
    file = source / CONFIG_FILE
    if not file.is_file():
        raise LaunchFailedError(
            f"launch.model_repository: model {source.name} has no {file}. Fix: put the model there, or correct the model's name"
        )
    config = for_launch(parse_config(file.read_text(encoding="utf-8"), str(file)), state, source.name, deprioritize_after_s, devices)
    target.mkdir()
    for path in source.iterdir():
        if path.name != CONFIG_FILE:
            _link(path, target / path.name)
    (target / CONFIG_FILE).write_text(render_config(config), encoding="utf-8")
    return is_complete(config)


def _link(source: Path, target: Path) -> None:
    """Link a file, or a folder as a whole unless Python code lies in it.

    Python would write its cache beside the code when the first instance starts; Triton sees a model's files change and answers the
    next load with a full reload. So folders with code are recreated, with a file in place of the cache.
    """
    if not (source.is_dir() and any(source.rglob("*.py"))):
        target.symlink_to(source.resolve())
        return
    target.mkdir()
    (target / _CACHE).touch()
    for path in source.iterdir():
        if path.name != _CACHE:
            _link(path, target / path.name)
