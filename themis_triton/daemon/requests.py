"""Values of a request's query, each within its bounds."""

from __future__ import annotations

import math

from aiohttp import web

from themis_triton.core.errors import SettingsError


def number(request: web.Request, name: str, default: float | None, smallest: float, largest: float) -> float:
    """One number of the query. SettingsError, which names what is allowed, where it is missing or out of bounds."""
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    return checked(name, text, smallest, largest)


def checked(name: str, text: str | None, smallest: float, largest: float) -> float:
    """The number of a text within bounds. SettingsError where it is none."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not smallest <= value <= largest:
        found = "is missing" if text is None else f"{text!r:.40} is invalid"
        raise SettingsError(f"{name}: {found}: expected a number of {smallest:g} to {largest:g}")
    return value
