"""Core values as bytes and back, exact to the last bit: records of ticks, settings and the engine's state.

Pickles keep what JSON loses: the types of numbers, tuples and sets, keys that are pairs, and objects that are shared. A pickle from
elsewhere could run any code, so only classes of the modules named here are read, no other module is imported, and only classes whose
fields are those that were written.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import pickle
import zlib
from pathlib import PosixPath
from typing import Any

from themis_triton.core.encoding import parsed_json

_LEVEL = 6
_PACKAGE = "themis_triton."
MODULES = frozenset(
    _PACKAGE + name
    for name in (
        *("core.action", "core.address", "core.client_auth", "core.config", "core.control", "core.decision", "core.estimate"),
        *(
            "core.fleet",
            "core.graph",
            "core.incident",
            "core.listener_tls",
            "core.model_config",
            "core.observation",
            "core.pipeline_config",
        ),
        *(
            "core.policy",
            "core.prediction",
            "core.recorded",
            "core.recurring",
            "core.retention",
            "core.routes",
            "core.server_config",
            "core.server_proxy",
        ),
        *("decide.bursts", "decide.scores", "decide.slow_target", "decide.state"),
        *(
            "estimate.calls",
            "estimate.counters",
            "estimate.done",
            "estimate.drift",
            "estimate.estimate",
            "estimate.learning",
            "estimate.routed",
        ),
        *("estimate.served", "estimate.shared", "estimate.work"),
        *("solver.migration", "solver.migration_steps", "solver.plans", "tick"),
    )
)
"""Where the classes of settings, of an engine's state and of a tick are."""
_KEY = "model_control_key"
"""The field of every class that holds such a key, servers and their settings: no other field of a recorded value is secret."""
_OTHER = {("pathlib", "PosixPath"): PosixPath}


class _Writer(pickle.Pickler):
    """Notes the fields of each class, and leaves the keys of model control out: a recording may be handed on."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 5)
        self.shapes: dict[str, list[str]] = {}

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401 - any object can be pickled
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            self.shapes.setdefault(f"{kind.__module__}:{kind.__qualname__}", [field.name for field in dataclasses.fields(value)])
            if getattr(value, _KEY, None) is not None:
                return dataclasses.replace(value, **{_KEY: None}).__reduce_ex__(5)
        return NotImplemented


class OtherVersionError(ValueError):
    """Another version of Themis wrote the values."""

    def __init__(self, what: object) -> None:
        super().__init__(f"another version of Themis wrote it: {what}")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - any class of the package
        if (module, name) in _OTHER:
            return _OTHER[module, name]
        if module.startswith(_PACKAGE) and module not in MODULES:
            raise OtherVersionError(f"{module} has no recorded values")
        found = super().find_class(module, name) if module in MODULES and "." not in name else None
        if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, (enum.Enum, tuple))):
            raise pickle.UnpicklingError(f"{module}.{name} is no value of this package")
        return found


def frozen(value: object) -> bytes:
    """A value as compressed bytes."""
    file = io.BytesIO()
    writer = _Writer(file)
    writer.dump(value)
    return zlib.compress(json.dumps(writer.shapes).encode() + b"\n" + file.getvalue(), _LEVEL)


def thawed(data: bytes) -> Any:  # noqa: ANN401 - whatever was frozen
    """The value of such bytes. ValueError when they are none; OtherVersionError when this version has other classes or fields."""
    try:
        head, _, body = zlib.decompress(data).partition(b"\n")
        shapes, reader = parsed_json(head), _Reader(io.BytesIO(body))
    except (zlib.error, ValueError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    try:
        _check(shapes, reader)
        return reader.load()
    except OtherVersionError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(f"it is no recording ({error})") from error
    except (ImportError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        # Damage shows in the checksum of the compressed bytes.
        raise OtherVersionError(error) from error


def _check(shapes: dict[str, list[str]], reader: _Reader) -> None:
    for place, names in shapes.items():
        if names != [field.name for field in dataclasses.fields(reader.find_class(*place.split(":")))]:
            raise OtherVersionError(f"{place} has other fields")
