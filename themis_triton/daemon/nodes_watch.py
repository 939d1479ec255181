"""Reads beside the ticks which nodes the engine has, so that launches choose node types that have a free device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from themis_triton.core.config import LaunchConfig
from themis_triton.core.errors import ThemisError
from themis_triton.core.nodes import NodesReading, read_types
from themis_triton.ports import Clock, ServerLauncher

log = structlog.get_logger()
TIMEOUT_S = 20.0
STALE_READINGS = 3
"""A reading counts for as many intervals."""


class NodesWatch:
    """The newest reading of the nodes of `launch.node_types`; it has none where there are no node types.

    Args:
        launch: the node types, and how often to read.
        launcher: what is asked.
        launched: the names of the servers that are launched or being launched now, with their node types.
        clock: the time of readings, and the pauses between them.
    """

    def __init__(
        self, launch: LaunchConfig | None, launcher: ServerLauncher | None, launched: Callable[[], dict[str, str]], clock: Clock
    ) -> None:
        self._launch, self._launcher, self._launched, self._clock = launch, launcher, launched, clock
        self.reading = NodesReading()

    @property
    def is_on(self) -> bool:
        """Whether nodes are read at all."""
        return self._launcher is not None and self._launch is not None and bool(self._launch.node_types and self._launch.read_nodes_every_s)

    async def run(self) -> None:
        """Read until cancelled."""
        while self.is_on and self._launch is not None:
            await self.read()
            await self._clock.sleep(self._launch.read_nodes_every_s)

    async def read(self) -> None:
        """Read once, bounded. A failure is logged once and kept beside the last reading."""
        if self._launcher is None or self._launch is None:
            return
        launched = frozenset(self._launched())
        try:
            nodes = await asyncio.wait_for(self._launcher.list_nodes(), TIMEOUT_S)
        except TimeoutError:
            self._fail(f"no answer within {TIMEOUT_S:g} s")
        except (ThemisError, OSError, ValueError, LookupError) as error:
            self._fail(str(error) or type(error).__name__)
        else:
            if self.reading.error is not None:
                log.info("nodes_read", message="the nodes of launch.node_types are known again")
            self.reading = NodesReading(self._clock.now_s(), read_types(nodes, self._launch), launched)

    def _fail(self, error: str) -> None:
        if self.reading.error is None:
            log.warning("nodes_not_read", error=error, message=self._consequence())
        self.reading = replace(self.reading, error=error)

    def _consequence(self) -> str:
        """What launches go by while the nodes cannot be read."""
        cheapest = "launches take the cheapest node type, whether it has a free device or not"
        if self._launch is None or self.reading.at_s is None:
            return cheapest
        return f"the last reading counts until it is {STALE_READINGS * self._launch.read_nodes_every_s:g} s old; then {cheapest}"

    def free_places(self) -> dict[str, int]:
        """By node type, how many more servers find a place: as last read, less what was launched since. Empty once that is stale."""
        read, launch = self.reading, self._launch
        if launch is None or read.at_s is None or self._clock.now_s() - read.at_s > STALE_READINGS * launch.read_nodes_every_s:
            return {}
        free = {name: each.places for name, each in read.node_types.items() if each.places is not None}
        for name, node_type in self._launched().items():
            if name not in read.launched and node_type in free:
                free[node_type] = max(0, free[node_type] - 1)
        return free
