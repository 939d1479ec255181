"""The model repositories that settings name, and what the models' own files say."""

from __future__ import annotations

import os
import re
from pathlib import Path

from themis_triton.adapters.triton.config_files import ModelRepository
from themis_triton.core.errors import SettingsError
from themis_triton.settings.kinds import MAX_NAME_BYTES
from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.servers import LaunchSettings
from themis_triton.settings.shipped import shipped

_IGNORED = re.compile(r"""\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#.*""")
"""Strings and comments of a configuration file."""


def repositories(loaded: Loaded) -> list[ModelRepository]:
    """The model repositories that can be read here: those of launched servers, then those of adopted ones."""
    own = launch_repositories(loaded, loaded.launch) if loaded.launch is not None else []
    for server in map(mapping, loaded.section("servers").values()):
        written, config_name = server.get("model_repository"), server.get("model_config_name")
        for folder in written if isinstance(written, list) else [written]:
            if isinstance(folder, str):
                own.append(ModelRepository(loaded.resolve(Path(folder)), config_name if isinstance(config_name, str) else None))
    return own


def launch_repositories(loaded: Loaded, launch: LaunchSettings) -> list[ModelRepository]:
    """The model repositories of launched servers."""
    named = launch.model_repository
    folders = [shipped("model_repository")] if named is None else [loaded.resolve(folder) for folder in named]
    return [ModelRepository(folder, launch.model_config_name) for folder in folders]


def is_folder_name(name: str) -> bool:
    """Whether a folder can have this name."""
    return bool(name) and Path(name).name == name and "\0" not in name and len(os.fsencode(name)) <= MAX_NAME_BYTES


def model_file(loaded: Loaded, model: str) -> Path | None:
    """The configuration file of a model in the first repository that has one; None where none has."""
    files = (repository.config(model) for repository in repositories(loaded)) if is_folder_name(model) else ()
    return next((file for file in files if file.is_file()), None)


def max_batch_size(config: Path) -> int | None:
    """`max_batch_size` of a model's configuration file; None if it is not set or the file cannot be read."""
    match = re.search(r"\bmax_batch_size\s*:\s*(\d+)", _fields(config))
    return int(match[1]) if match is not None else None


def is_stateful(loaded: Loaded, model: str) -> bool:
    """Whether a model's own file in one of the repositories has `sequence_batching`: it keeps state between calls."""
    return any(re.search(r"\bsequence_batching\b", _fields(repository.config(model))) is not None for repository in repositories(loaded))


def unusable_inputs(loaded: Loaded, model: str, inputs: Path) -> str | None:
    """Why an .npz file does not hold the model's inputs, by the model's own file; None: it does, is not used, or that is not known here."""
    file = model_file(loaded, model)
    if file is None:
        return None
    from google.protobuf import text_format  # noqa: PLC0415 - only settings with such files need the packages
    from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig  # noqa: PLC0415

    from themis_triton.adapters.triton.arrays import input_array, read_arrays  # noqa: PLC0415

    try:
        config = text_format.Parse(_text(file), ModelConfig())
        arrays = read_arrays(inputs)
        for entry in config.input if not config.model_warmup else ():
            datatype = DataType.Name(entry.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
            if not entry.optional:
                input_array(inputs, arrays, model, entry.name, datatype)
    except text_format.ParseError:
        return None  # reported where the file is used
    except SettingsError as error:
        return str(error)
    return None


def _fields(file: Path) -> str:
    """The text of a configuration file without its strings and comments."""
    return _IGNORED.sub('""', _text(file))


def _text(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
