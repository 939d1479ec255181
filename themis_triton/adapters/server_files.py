"""The files of one launched server: its own view of the model repository, and its log."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from themis_triton.adapters.processes import remove_shared_memory, shared_memory_prefix
from themis_triton.adapters.triton.config_files import CONFIG_FILE, config_file
from themis_triton.adapters.triton.groups import Devices
from themis_triton.adapters.triton.model_config import Config, for_launch, is_complete, parse_config, render_config
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ModelFailedError, SettingsError
from themis_triton.core.fleet import ModelState

_CACHE = "__pycache__"
_ENVIRONMENT = Path("bin") / "activate"
"""By this file the Python backend enters an environment."""
_LOG_HEAD = rb"^(?:[IWE]\d{4} \S+|\d{4}-\d\d-\d\dT\S+ [IWE]) %d "
"""Triton's two log formats up to the process id, which tells its lines from those of a loader or a library."""
_LOG_READ_BYTES = 1 << 16
_LOAD_FAILED = re.compile(r"(?:failed to load|Poll failed for model directory) '([^']+)'(?: version \d+)?: ([^\n]*?)\"?$", re.MULTILINE)
_PASSING = re.compile(r"out of memory|bad_?alloc|allocat|CUDA|No space left|Too many open files", re.IGNORECASE)
"""Causes outside the model, which may be gone at the next attempt."""


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

    def last_lines(self, lines: int) -> str | None:
        """The log's last lines; None while there is no log."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as log:
                return "".join(deque(log, maxlen=lines)).rstrip()
        except FileNotFoundError:
            return None

    def log_tail(self, lines: int = 20) -> str:
        """The log's name and last lines, for an error."""
        last = self.last_lines(lines)
        return f"log {self.log}, last lines:\n{last if last is not None else '(no log was written)'}"

    def log_size(self) -> int:
        """The bytes of the log; 0 while there is none."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def has_line_of(self, pid: int, start_bytes: int) -> bool:
        """Whether Triton itself, as this process, has written a line after `start_bytes` of the log."""
        try:
            with self.log.open("rb") as log:
                log.seek(start_bytes)
                return re.search(_LOG_HEAD % pid, log.read(_LOG_READ_BYTES), re.MULTILINE) is not None
        except FileNotFoundError:
            return False

    def load_failure(self) -> tuple[str, str] | None:
        """The first model that the log says could not be loaded, and the cause; None: none, or one that may fit at another time."""
        start = max(0, self.log_size() - _LOG_READ_BYTES)
        try:
            with self.log.open("rb") as log:
                log.seek(start)
                found = _LOAD_FAILED.search(log.read(_LOG_READ_BYTES).decode(errors="replace"))
        except FileNotFoundError:
            return None
        if found is None or _PASSING.search(found[2]) is not None:
            return None
        return found[1], found[2].split("\\n")[0].strip()  # what follows is the backend's traceback

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
    further: Sequence[Path] = (),
    ensembles: Sequence[str] = (),
    config_name: str | None = None,
) -> bool:
    """Make the server's own model repository: links to the models' files, and a `config.pbtxt` with the right state from the start.

    Later overrides are made from that very file, so a later change of counts is in place from the first one on. `deprioritize_after_s`
    (by model) and `devices`: see `model_config.for_launch`. A model lies in `repository` or, if not there, in one of `further`.
    `ensembles` are linked as they are. `config_name`: see `model_config.config_file`. What else lies in the repositories is linked too,
    because a model's code may read it by a path from its own folder, as `../shared/labels.txt`.

    Returns:
        Whether every configuration is complete, so that Triton need not ask the backends to complete them.

    Raises:
        LaunchFailedError: a model is not in the repository, or the view cannot be written.
        ModelFailedError: a `config.pbtxt` cannot be parsed, or a model cannot have the state.
    """
    folder = partial(model_folder, repository=repository, further=further)
    try:
        shutil.rmtree(files.models, ignore_errors=True)
        files.models.mkdir(parents=True)
        files.log.parent.mkdir(parents=True, exist_ok=True)
        complete = [
            _build_model(folder(name), config_file(folder(name), config_name), files.models / name, state, deprioritize_after_s, devices)
            for name, state in models.items()
        ]
        for name in ensembles:
            _link_ensemble(folder(name), config_file(folder(name), config_name), files.models / name)
        _link_rest((repository, *further), files.models)
    except OSError as error:
        raise LaunchFailedError(f"server {files.name}: its files cannot be written to {files.directory}: {error}") from error
    return all(complete)


def add_model(
    files: ServerFiles,
    repository: Path,
    model: str,
    state: ModelState,
    deprioritize_after_s: Mapping[str, float],
    devices: Devices | None = None,
    further: Sequence[Path] = (),
    config_name: str | None = None,
) -> None:
    """Add a model to a running server's repository as `build_view` would have made it, whole or not at all; one that is there stays.

    Raises:
        As `build_view`.
    """
    target = files.models / model
    if target.exists() and not target.is_symlink():
        return
    source = model_folder(model, repository, further)
    try:
        with tempfile.TemporaryDirectory(dir=files.directory) as aside:
            _build_model(source, config_file(source, config_name), Path(aside) / "model", state, deprioritize_after_s, devices)
            target.unlink(missing_ok=True)
            (Path(aside) / "model").rename(target)
    except OSError as error:
        raise LaunchFailedError(f"server {files.name}: {model} cannot be added to {files.models}: {error}") from error


def add_ensembles(
    files: ServerFiles, repository: Path, names: Sequence[str], further: Sequence[Path] = (), config_name: str | None = None
) -> None:
    """Link the ensembles that a running server's repository lacks, as `build_view` would have done.

    Raises:
        LaunchFailedError: one is not in the repository, or cannot be linked.
    """
    try:
        for name in names:
            source, target = model_folder(name, repository, further), files.models / name
            if not source.is_dir():
                raise _no_folder(source)
            if target.is_symlink():
                target.unlink()
            if not target.exists():
                _link_ensemble(source, config_file(source, config_name), target)
    except OSError as error:
        raise LaunchFailedError(f"server {files.name}: {', '.join(names)} cannot be added to {files.models}: {error}") from error


def model_folder(model: str, repository: Path, further: Sequence[Path]) -> Path:
    """The first folder of a model in several model repositories; that in `repository` where there is none."""
    return next((folder / model for folder in (repository, *further) if (folder / model).is_dir()), repository / model)


def _link_ensemble(source: Path, file: Path, target: Path) -> None:
    if file == source / CONFIG_FILE:
        target.symlink_to(source.resolve())
        return
    target.mkdir()
    for path in source.iterdir():
        if path.name != CONFIG_FILE:
            (target / path.name).symlink_to(path.resolve())
    (target / CONFIG_FILE).symlink_to(file.resolve())


def _link_rest(repositories: Sequence[Path], target: Path) -> None:
    for path in (path for repository in repositories if repository.is_dir() for path in repository.iterdir()):
        link = target / path.name
        if not link.exists() and not link.is_symlink():
            link.symlink_to(path.resolve())


def _build_model(
    source: Path, file: Path, target: Path, state: ModelState, deprioritize_after_s: Mapping[str, float], devices: Devices | None
) -> bool:
    if not source.is_dir():
        raise _no_folder(source)
    try:
        config = _config_of(source, file, state, deprioritize_after_s, devices)
    except (SettingsError, ChangeRefusedError) as error:
        cause, _, fix = str(error).partition(". Fix: ")
        raise ModelFailedError(str(error), source.name, cause, fix) from error
    target.mkdir()
    for path in source.iterdir():
        if path.name != CONFIG_FILE:
            _link(path, target / path.name)
    (target / CONFIG_FILE).write_text(render_config(config), encoding="utf-8")
    return is_complete(config)


def _config_of(source: Path, file: Path, state: ModelState, deprioritize_after_s: Mapping[str, float], devices: Devices | None) -> Config:
    if not file.is_file():  # The backend completes it, batching too, which the file must leave out then.
        return for_launch(ModelConfig(name=source.name), replace(state, max_batch=1, max_queue_delay_us=0), source.name, None, devices)
    own = parse_config(file.read_text(encoding="utf-8"), str(file))
    return for_launch(own, state, source.name, deprioritize_after_s.get(source.name), devices)


def _no_folder(source: Path) -> ModelFailedError:
    cause, fix = f"launch.model_repository: there is no folder {source}", "put the model there, or correct its name"
    return ModelFailedError(f"{cause}. Fix: {fix}", source.name, cause, fix)


def _link(source: Path, target: Path) -> None:
    """Link a file, or a folder as a whole unless Python code lies in it.

    Python would write its cache beside the code when the first instance starts; Triton sees a model's files change and answers the
    next load with a full reload. So folders with code are recreated, with a file in place of the cache. But a Python environment (of
    `EXECUTION_ENV_PATH`) has tens of thousands of files and comes with its caches, without which each start would compile it.
    """
    if not source.is_dir() or (source / _ENVIRONMENT).is_file() or not any(source.rglob("*.py")):
        target.symlink_to(source.resolve())
        return
    target.mkdir()
    (target / _CACHE).touch()
    for path in source.iterdir():
        if path.name != _CACHE:
            _link(path, target / path.name)


def files_version(*paths: Path) -> str:
    """Identifies files, and all files in folders, by their sizes and times of change; Python's own cache is left out."""
    found = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if _CACHE not in file.parts]
    stats = ((file, file.stat()) for file in sorted(found) if file.is_file())
    listing = "".join(f"{file} {stat.st_size} {stat.st_mtime_ns}\n" for file, stat in stats)
    return hashlib.sha256(listing.encode()).hexdigest()
