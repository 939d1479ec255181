"""Discovers running launched servers by the marks of their processes, independent of the journal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil

from themis_triton.adapters.process_end import owned_processes
from themis_triton.adapters.process_identity import identify
from themis_triton.adapters.server_files import ServerFiles
from themis_triton.adapters.triton.groups import Devices, numbered_devices
from themis_triton.adapters.triton.model_config import parse_config, read_config_text, state_of
from themis_triton.core.address import Address
from themis_triton.core.fleet import ModelState, Phase, Server

SERVER_VARIABLE = "THEMIS_SERVER"
SLOT_VARIABLE = "THEMIS_SLOT"
DEVICE_VARIABLE = "THEMIS_DEVICE"
REACH_VARIABLE = "THEMIS_REACH"
KEY_VARIABLE = "THEMIS_MODEL_CONTROL_KEY"
"""Environment variables of a launched server: its name, its slot, that slot's device, the further devices that it may use, and its key.

Other users than the server's own cannot read them.
"""


def find_launched(state_directory: Path) -> tuple[Server, ...]:
    """Servers that were launched with this state directory and run, by name, in phase LAUNCHING. Blocking.

    A daemon that was killed between a launch and its entry in the journal can adopt such a server
    (`wait_ready`, `warm_up`) or `stop` it. Their `models` are the states that they were launched with.
    """
    servers = [_server(state_directory, process) for process in owned_processes(state_directory)]
    return tuple(sorted((server for server in servers if server is not None), key=lambda server: server.name))


def _server(state_directory: Path, process: psutil.Process) -> Server | None:
    """The server that the process is; None when it is something else (a server's child, Envoy) or has gone."""
    try:
        environment = process.environ()
        if SERVER_VARIABLE not in environment or os.getsid(process.pid) != process.pid:
            return None
        options, loaded = _options(process.cmdline())
        identity = identify(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    files = ServerFiles(state_directory, environment[SERVER_VARIABLE])
    grpc, http, metrics = (Address(options[f"{part}-address"], int(options[f"{part}-port"])) for part in ("grpc", "http", "metrics"))
    server = Server(
        files.name,
        environment[DEVICE_VARIABLE],
        grpc,
        http,
        metrics,
        Phase.LAUNCHING,
        launched=True,
        slot=environment[SLOT_VARIABLE],
        process=identity,
        # The command line shows it only until the server is ready.
        model_control_key=environment.get(KEY_VARIABLE) or options["grpc-restricted-protocol"].partition("=")[2],
        log_file=str(files.log),
        model_repository=str(files.models),
        reach=tuple(environment.get(REACH_VARIABLE, "").split()),
    )
    return replace(server, models=_launched_models(files, loaded, numbered_devices(server)))


def _options(command: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a command line, the first of each name, and the models to load."""
    pairs = [(name, value) for name, _, value in (word.removeprefix("--").partition("=") for word in command[1:])]
    return dict(reversed(pairs)), [value for name, value in pairs if name == "load-model"]


def _launched_models(files: ServerFiles, names: list[str], devices: Devices) -> dict[str, ModelState]:
    texts = {name: read_config_text(files.models, name) for name in names}
    return {name: state_of(parse_config(*text), None, devices) for name, text in texts.items() if text is not None}
