"""The settings that the client commands need, read without the schema: building it takes longer than the commands may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from themis_triton.core.address import Address
from themis_triton.core.control import TOKEN_FILE

DEFAULT_STATE_DIRECTORY = ".themis"
DEFAULT_STATUS_ADDRESS = "127.0.0.1:9180"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STATUS_KEYS = frozenset({"address", "allow_non_loopback", "token_file"})


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """A sidecar's state directory, its status address, and the file with the token of its status API.

    With TLS the address has the certificate that it shows, as `ca`.
    """

    state_directory: Path
    status_address: Address
    token_file: Path


def load_runtime_paths(path: Path) -> RuntimePaths:
    """`state_directory` and `status` of a settings file, whatever the errors in its other keys.

    Raises SettingsError with the errors of these two sections, or all errors if the file cannot be read.
    """
    data = read_mapping(path)
    if data is not None:
        state, status = data.get("state_directory", DEFAULT_STATE_DIRECTORY), data.get("status", {})
        address = _address(status)
        if isinstance(state, str) and address is not None:
            return runtime_paths(path, state, address, status.get("token_file"))
    # Anything unusual is left to the schema, which accepts it or names every error.
    from themis_triton.settings.examine import checked_runtime_paths  # noqa: PLC0415 - loads the schema

    return checked_runtime_paths(path)


def runtime_paths(path: Path, state_directory: str | Path, address: Address, token_file: str | Path | None) -> RuntimePaths:
    """The values of a settings file with absolute paths."""
    state = resolve(path, Path(state_directory))
    return RuntimePaths(state, address, resolve(path, Path(token_file)) if token_file is not None else state / TOKEN_FILE)


def resolve(settings_file: Path, path: Path) -> Path:
    """The absolute path, relative to the settings file's folder. A final symbolic link is kept: a binary may depend on its name."""
    joined = settings_file.parent / path
    return joined.parent.resolve() / joined.name


def read_mapping(path: Path) -> Mapping[str, Any] | None:
    """The file's content; None when it is not a mapping with unique keys."""
    try:
        loader = _Loader(path.read_bytes().decode("utf-8-sig"))
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode) or _has_duplicates(root):
                return None
            data: object = loader.construct_document(root)
        finally:
            loader.dispose()
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return data if isinstance(data, dict) else None


def _has_duplicates(root: yaml.MappingNode) -> bool:
    status = [value for key, value in root.value if key.value == "status" and isinstance(value, yaml.MappingNode)]
    return any(max(Counter(str(key.value) for key, _ in node.value).values(), default=1) > 1 for node in (root, *status))


def _address(status: object) -> Address | None:
    """The address of a plain loopback `status` section; None for any other value."""
    if not isinstance(status, dict) or not status.keys() <= _STATUS_KEYS or not isinstance(status.get("allow_non_loopback", False), bool):
        return None
    if not isinstance(status.get("token_file"), str | None):
        return None
    try:
        address = Address.parse(str(status.get("address", DEFAULT_STATUS_ADDRESS)))
    except ValueError:
        return None
    return address if address.ip is not None and address.is_loopback and not address.tls else None
