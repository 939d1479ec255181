"""Frozen dataclasses that a tick makes by the thousand: as immutable as others, for a fraction of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

__all__ = ["quickly_made", "replace"]

Value = TypeVar("Value")
CODE = """
def __init__(self, {arguments}):
    become(self, "__class__", Open)
    {given}
    self.__class__ = Frozen
    self{after}

def __replace__(self, /, **changes):
    copy = new(Open)
    {copied}
    for name in changes:
        if name not in {fields}:
            raise TypeError(name)
        setattr(copy, name, changes[name])
    copy.__class__ = Frozen
    copy{after}
    return copy
"""

if TYPE_CHECKING:
    from dataclasses import replace  # with the checks of its arguments
else:
    from dataclasses import replace as _replace

    def replace(value: Value, /, **changes: object) -> Value:
        """`dataclasses.replace`; quick for classes that are `quickly_made`."""
        copied = getattr(value, "__replace__", None)
        return _replace(value, **changes) if copied is None else copied(**changes)


def quickly_made(cls: type[Value]) -> type[Value]:
    """The same frozen dataclass with another `__init__`, and with the `__replace__` of Python 3.13.

    The usual one calls `object.__setattr__` for each field. With this one an object belongs to a class of the same layout that is not
    frozen until its fields are set. TypeError where a field is no argument of `__init__`.
    """
    own = fields(cast("Any", cls))
    if not all(each.init for each in own):
        raise TypeError(f"{cls.__name__}: a field is no argument of `__init__`; leave it a plain dataclass")
    slots = {"__slots__": cls.__dict__["__slots__"]} if "__slots__" in cls.__dict__ else {}
    names: dict[str, Any] = {"Frozen": cls, "MISSING": MISSING, "new": object.__new__, "become": object.__setattr__}
    names["Open"] = type(cls.__name__, cls.__bases__, {**slots, "__setattr__": object.__setattr__})
    for each in own:
        names |= {f"default_{each.name}": each.default, f"make_{each.name}": each.default_factory}
    code = CODE.format(
        arguments=", ".join(_arguments(own)),
        fields=tuple(each.name for each in own),
        given=";".join(f"self.{each.name}={_given(each)}" for each in own),
        copied=";".join(f"copy.{each.name}=self.{each.name}" for each in own),
        after=".__post_init__()" if hasattr(cls, "__post_init__") else "",
    )
    exec(code, names)  # noqa: S102 - as `dataclass` does
    for name in ("__init__", "__replace__"):
        setattr(cls, name, names[name])
    return cls


def _arguments(own: Sequence[Field[Any]]) -> list[str]:
    by_name = [_argument(each) for each in own if each.kw_only]
    return [*(_argument(each) for each in own if not each.kw_only), *(["*", *by_name] if by_name else [])]


def _argument(each: Field[Any]) -> str:
    if each.default is not MISSING:
        return f"{each.name}=default_{each.name}"
    return each.name if each.default_factory is MISSING else f"{each.name}=MISSING"


def _given(each: Field[Any]) -> str:
    return each.name if each.default_factory is MISSING else f"make_{each.name}() if {each.name} is MISSING else {each.name}"
