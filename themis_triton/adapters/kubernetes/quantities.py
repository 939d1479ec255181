"""Kubernetes' quantities, such as `500m` or `4Gi`, as numbers and back."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:(m|[kMGTPE]i?|Ki)|[eE]([+-]?\d+))?")
_DECIMAL = {"": 0, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: dict[str, int] = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def parse_quantity(value: object) -> Decimal:
    """The number of a quantity. ValueError when it is none."""
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a quantity, such as 500m or 4Gi")
    number, suffix, exponent = Decimal(match[1]), match[2] or "", match[3]
    if suffix in _BINARY:
        return number * Decimal(1024 ** _BINARY[suffix])
    return number.scaleb(int(exponent) if exponent else _DECIMAL[suffix])


def same(one: object, other: object) -> bool:
    """Whether two quantities are the same amount, however they are written."""
    return one == other or (one is not None and other is not None and parse_quantity(one) == parse_quantity(other))


def cpu_text(amount: Decimal) -> str:
    """Processors in thousandths."""
    return f"{round(1000 * amount)}m"


def memory_text(amount: Decimal) -> str:
    """Bytes."""
    return str(round(amount))
