"""Changes of a model with open sequences: its instances come and go without harm, a reload cuts every sequence."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from themis_triton.adapters.process_connections import listening_since_s
from themis_triton.adapters.sockets import is_of_this_machine
from themis_triton.adapters.triton.config_files import config_file, model_folder
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import Server

_CLOCK_ERROR_S = 0.1
"""Of a process's start time; no model is loaded sooner after it."""


def check_in_place(server: Server, model: str, differing: Collection[str] = ()) -> None:
    """Raise ChangeRefusedError unless the next change of the model's counts is in place. Blocking.

    `differing`: fields that the server runs with other values than the model's file has, see `model_base.differing_fields`.

    Triton reloads a model if a file of its folder changed after the load. Python does this itself when a `model.py` runs for the first
    time: it writes its cache beside it. A launched server's folder is made so that this cannot happen. An adopted server must have
    started after the last change.
    """
    if server.launched:
        return
    would_cut = f"server {server.name}: a change of model {model} might reload it and cut its open sequences, because"
    if fields := [field for field in differing if field != "instance_group"]:
        found = f"it was loaded by hand with another {', '.join(fields)} than its file has"
        raise ChangeRefusedError(f"{would_cut} {found}. Fix: write the values into its config.pbtxt and restart the server once")
    folder = model_folder(server, model)
    file = config_file(folder, server.model_config_name) if folder is not None else None
    if folder is None or file is None or not file.is_file():
        where = file or "no model_repository"
        raise ChangeRefusedError(f"{would_cut} its own file cannot be read here ({where}). Fix: name the server's model_repository")
    start_s = listening_since_s(server.grpc_address.port) if is_of_this_machine(server.grpc_address.host) else None
    if start_s is None:
        raise ChangeRefusedError(f"{would_cut} its process is not visible here. Fix: run the sidecar on its machine, as the same user")
    newest = max(_files(folder), key=_modified_s)
    if _modified_s(newest) > start_s + _CLOCK_ERROR_S:
        raise ChangeRefusedError(f"{would_cut} {newest} changed after the server started. Fix: restart the server once")


def _files(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def _modified_s(path: Path) -> float:
    return path.stat().st_mtime
