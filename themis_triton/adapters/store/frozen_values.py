"""Core values as bytes and back, exact to the last bit: records of ticks, settings and the engine's state.

Pickles keep what JSON loses: the types of numbers, tuples and sets, keys that are pairs, and objects that are shared. A pickle from
elsewhere could run any code, so only this package's own classes are read, and only if their fields are those that were written.
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

_LEVEL = 6
_PACKAGE = "themis_triton."
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


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - any class of the package
        if (module, name) in _OTHER:
            return _OTHER[module, name]
        found = super().find_class(module, name) if module.startswith(_PACKAGE) and "." not in name else None
        if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, (enum.Enum, tuple))):
            raise ValueError(f"{module}.{name} is no value of this package")
        return found


def frozen(value: object) -> bytes:
    """A value as compressed bytes."""
    file = io.BytesIO()
    writer = _Writer(file)
    writer.dump(value)
    return zlib.compress(json.dumps(writer.shapes).encode() + b"\n" + file.getvalue(), _LEVEL)


def thawed(data: bytes) -> Any:  # noqa: ANN401 - whatever was frozen
    """The value of such bytes. ValueError when they are none, or those of a version with other fields."""
    head, _, body = zlib.decompress(data).partition(b"\n")
    reader = _Reader(io.BytesIO(body))
    for place, names in json.loads(head).items():
        kind = reader.find_class(*place.split(":"))
        if names != [field.name for field in dataclasses.fields(kind)]:
            raise ValueError(f"another version of Themis wrote it: {place} has other fields")
    try:
        return reader.load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"it is damaged ({error})") from error
