"""Frozen, slotted dataclasses made in a fraction of the time.

The `__init__` of a frozen dataclass calls `object.__setattr__` for each field. Here plain assignments set the fields while the object is
one of a twin class, which has the same slots and is not frozen; then it becomes one of the frozen class. For what ticks make often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from functools import cache, update_wrapper
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type[Any])

_LATER: Any = object()
"""The default of an argument whose value is found in the function."""
_BECOME = object.__dict__["__class__"].__set__  # a frozen class refuses the assignment


def quick_init(kind: Kind) -> Kind:
    """The same frozen and slotted dataclass, whose `__init__` takes the same arguments."""
    own, keywords = fields(kind), [_parameter(field) for field in fields(kind) if field.init and field.kw_only]
    positional = [_parameter(field) for field in own if field.init and not field.kw_only]
    head = f"__init__({', '.join(['self', *positional, *(['*', *keywords] if keywords else [])])})"
    values = (f"self.{field.name} = {value}" for field in own if (value := _value(field)))
    body = ["_become(self, _twin)", *values, *_ending(kind, "self")]
    defaults = {f"_default_{field.name}": field.default for field in own}
    factories = {f"_make_{field.name}": field.default_factory for field in own}
    kind.__init__ = update_wrapper(_function(kind, head, body, defaults | factories), kind.__init__)
    return kind


@cache
def copier_of(kind: type[Any]) -> Callable[..., Any]:
    """A function that copies an object of a frozen and slotted dataclass, with its keyword arguments in place of own values."""
    names = [field.name for field in fields(kind)]
    head = f"{kind.__name__}({', '.join(['_value', '/', '*', *(f'{name}=_later' for name in names)])})"
    values = (f"_copy.{name} = _value.{name} if {name} is _later else {name}" for name in names)
    return _function(kind, head, ["_copy = _new(_twin)", *values, *_ending(kind, "_copy"), "return _copy"])


def _parameter(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"{field.name}=_default_{field.name}"
    return field.name if field.default_factory is MISSING else f"{field.name}=_later"


def _value(field: Field[Any]) -> str:
    """What a new object has; empty where its class computes that."""
    if field.init:
        return field.name if field.default_factory is MISSING else f"_make_{field.name}() if {field.name} is _later else {field.name}"
    if field.default is not MISSING:
        return f"_default_{field.name}"
    return f"_make_{field.name}()" if field.default_factory is not MISSING else ""


def _ending(kind: type[Any], name: str) -> list[str]:
    """The object becomes one of the class, which may check its values."""
    return [f"{name}.__class__ = _kind", *([f"{name}.__post_init__()"] if hasattr(kind, "__post_init__") else [])]


def _function(kind: type[Any], head: str, body: Iterable[str], defaults: dict[str, Any] | None = None) -> Callable[..., Any]:
    """A function of a class from its source, as `dataclasses` makes them."""
    twin = type(kind.__name__, kind.__bases__, {"__slots__": kind.__slots__, "__setattr__": object.__setattr__})
    names = {"_kind": kind, "_twin": twin, "_new": object.__new__, "_become": _BECOME, "_later": _LATER, **(defaults or {})}
    exec("\n    ".join([f"def {head}:", *body]), names)  # noqa: S102 - of names of fields alone
    function: Callable[..., Any] = names[head.partition("(")[0]]
    return function
