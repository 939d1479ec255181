"""Servers of the virtual cluster, and the simulation's rows that they use: one for each device with a place of the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import Models, ModelState


def row_devices(config: ThemisConfig) -> tuple[str, ...]:
    """The device of each row: of the adopted servers, then of the slots, then of each further device that servers may use."""
    slots = config.launch.slots if config.launch is not None else ()
    homes = [*(server.device for server in config.servers), *(slot.device for slot in slots)]
    return (*homes, *(device for device in config.devices if device not in homes))


class Rows:
    """The rows that no server uses. A device has as many rows as servers may use it."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._free = list(range(len(devices)))

    def device(self, row: int) -> str:
        """The device of a row."""
        return self._devices[row]

    def is_full(self, device: str) -> bool:
        """Whether as many servers use a device as may."""
        return all(self._devices[row] != device for row in self._free)

    def take(self, device: str, preferred: int | None = None) -> int:
        """A free row of a device that is not full: the preferred one if it is free, else the last."""
        row = preferred if preferred in self._free else [each for each in self._free if self._devices[each] == device][-1]
        self._free.remove(row)
        return row

    def give_back(self, rows: Iterable[int]) -> None:
        """These rows are free again."""
        self._free = sorted([*self._free, *rows])


@dataclass(slots=True)
class SimServer:
    """A process in the cluster.

    `number`: the row of its slot or its adopted server. `rows`: the row on each device that it uses, its home first. `reach`: further
    devices that it may use. `growing`: devices on which instances start, with the number of calls that start them. `routed`: it has been
    in the routes. `instances` and `price` are those of its models.
    """

    name: str
    number: int
    rows: dict[str, int]
    models: Models
    reach: tuple[str, ...] = ()
    alive: bool = True
    routed: bool = False
    instances: int = 0
    price: float = 0.0
    locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    growing: Counter[str] = field(default_factory=Counter)

    @property
    def row(self) -> int:
        """Its first row, by which the simulation knows it."""
        return next(iter(self.rows.values()))

    @property
    def home(self) -> str:
        """The device of its first instances."""
        return next(iter(self.rows))

    def placed(self, state: ModelState) -> ModelState:
        """The state with its spread over the server's devices, in their order: by default all at home.

        ChangeRefusedError when it names another device.
        """
        devices = (self.home, *self.reach)
        for device, _ in state.spread:
            if device not in devices:
                raise ChangeRefusedError(f"server {self.name} cannot use {device}: expected {', '.join(devices)}")
        if not self.reach:
            return replace(state, spread=())
        return state.spread_over({device: state.on(device) for device in devices} if state.spread else {self.home: state.instances})

    def with_counts(self, state: ModelState, counts: dict[str, int]) -> ModelState:
        """The state with these instances by device."""
        return self.placed(state.spread_over(counts))

    def counts(self, state: ModelState) -> dict[str, int]:
        """The instances on each device that the server uses."""
        return {device: state.on(device) for device in self.rows}

    def unused(self) -> list[str]:
        """Devices other than its home where it has no instances and starts none."""
        return [
            device
            for device in self.rows
            if device != self.home and not self.growing[device] and not any(state.on(device) for state in self.models.values())
        ]
