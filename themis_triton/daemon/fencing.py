"""Ports whose calls change nothing once this sidecar does not lead any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

Port = TypeVar("Port")
CHANGES = frozenset(
    {"change", "reload", "load", "launch", "add_model", "add_ensembles", "wait_ready", "resize", "stop", "kill", "stop_all", "write"}
)
"""The calls of ports that change servers or routes; `wait_ready` begins the server on a node that was found."""


def fenced(port: Port, check: Callable[[], None]) -> Port:
    """The same port, whose changes raise what `check` raises instead of being begun."""
    return cast("Port", _Fenced(port, check))


class _Fenced:
    def __init__(self, port: object, check: Callable[[], None]) -> None:
        self._port, self._check = port, check

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the port has
        attribute = getattr(self._port, name)
        if name not in CHANGES:
            return attribute

        async def checked(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            self._check()
            return await cast("Callable[..., Awaitable[Any]]", attribute)(*arguments, **options)

        return checked
