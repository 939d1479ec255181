"""The devices that one tick's decisions may still take: for a new server, or for a new place of a running one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from themis_triton.core.config import DeviceSlot, ThemisConfig
from themis_triton.core.fleet import Models, Place, Server
from themis_triton.core.observation import OpenCall, Snapshot, devices_of, launch_of
from themis_triton.core.price import may_use


class FreeDevices:
    """Devices with their servers, those of launches, open calls and reloads included. Decisions take devices one after the other.

    A device is held by one server at a time, or by as many as the settings put there. `waiting`: the servers and models whose growth
    takes longer than an initialisation, because requests wait.
    """

    def __init__(self, snapshot: Snapshot, config: ThemisConfig) -> None:
        self.snapshot = snapshot
        self._config = config
        backing_off = {actuator for actuator, until_s in snapshot.backing_off.items() if until_s > snapshot.at_s}
        self.waiting = frozenset((call.server, call.model) for call in snapshot.open_calls if _waits(call, snapshot, config))
        self._resting = backing_off | {f"{server}/{model}" for server, model in self.waiting}
        self._holders: dict[str, set[str]] = {}
        self._launched_on: set[str] = set()
        self._slots: tuple[str, ...] | None = None
        self._bound_slots: dict[frozenset[str], tuple[str, ...]] = {}
        self._full_types = self._types_that_failed()
        self._is_bound = any(model.node_types for model in config.models.values())
        self._places = config.places
        held = {
            server.name: server.held_devices.intersection(server.devices) if server.reach else {server.device}
            for server in snapshot.servers
        }
        for call in (*snapshot.open_calls, *snapshot.reloads):  # removed instances hold their devices until they are torn down
            held.setdefault(call.server, set()).update([device for device, _ in (*call.before.spread, *call.after.spread)])
        for name, devices in held.items():
            for device in devices:
                self._holders.setdefault(device, set()).add(name)
        self._memory_bytes = {
            reading.device: reading.memory_free_bytes - config.policy.memory_margin_fraction * (reading.memory_total_bytes or 0)
            for reading in snapshot.devices
            if reading.memory_free_bytes is not None
        }

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots with no server on them, not in back-off, and with a free device, in the order of the settings.

        Those without a place on a node come last: as far as that is known, and of node types on which a launch has just failed.
        """
        if self._slots is None:
            self._slots = self._free_slots()
        return self._slots

    def slots_for(self, models: Iterable[str]) -> tuple[str, ...]:
        """Free slots that these models may use and on which no launch with one of them rests.

        Those come first on which launches with other models rest, then they are in the order of the settings.
        """
        if not self.snapshot.resting and not self._is_bound:
            return self.slots
        names = tuple(models)
        slots = self._slots_of(names)
        if not self.snapshot.resting:
            return slots
        usable = [slot for slot in slots if not self.rests(slot, names)]
        return tuple(sorted(usable, key=lambda slot: not any(key.startswith(launch_of(slot, "")) for key in self.snapshot.resting)))

    def rests(self, slot: str, models: Iterable[str]) -> bool:
        """Whether launches with one of these models rest on a slot."""
        return any(launch_of(slot, name) in self.snapshot.resting for name in models)

    def _slots_of(self, models: Iterable[str]) -> tuple[str, ...]:
        """Free slots of the node types that these models are bound to."""
        types = self._types_of(models)
        if types is None:
            return self.slots
        if types not in self._bound_slots:
            slots = self._config.launch.slot_by_name if self._config.launch is not None else {}
            self._bound_slots[types] = tuple(slot for slot in self.slots if slots[slot].node_type in types)
        return self._bound_slots[types]

    def _types_of(self, models: Iterable[str]) -> frozenset[str] | None:
        """The node types that all of these models may use; None: any."""
        bound = [set(self._config.models[name].node_types) for name in models] if self._is_bound else []
        bound = [types for types in bound if types]
        return frozenset(set.intersection(*bound)) if bound else None

    def admits(self, slot: str | None, models: Iterable[str]) -> bool:
        """Whether all of these models may be on a server on the slot; on an adopted server they may."""
        known = self._config.launch.slot_by_name.get(slot or "") if self._config.launch is not None else None
        return known is None or may_use(known, models, self._config)

    def _free_slots(self) -> tuple[str, ...]:
        launch, snapshot = self._config.launch, self.snapshot
        taken = {server.slot for server in snapshot.servers} | snapshot.busy | set(snapshot.backing_off) | self._launched_on
        free = [slot for slot in launch.slots if slot.name not in taken] if launch is not None else []
        usable = [slot for slot in free if self._has_room(slot.device)]
        if not self.snapshot.free_places and not self._full_types:
            return tuple(slot.name for slot in usable)
        return tuple(slot.name for slot in sorted(usable, key=self._lacks_place()))

    def _lacks_place(self) -> Callable[[DeviceSlot], bool]:
        """Whether a slot has no place on a node, asked of one slot after the other, each of which would take one."""
        launch = self._config.launch
        slots = launch.slot_by_name if launch is not None else {}
        left = Counter(self.snapshot.free_places)
        left.subtract(slots[name].node_type or "" for name in self._launched_on)

        def lacks(slot: DeviceSlot) -> bool:
            node_type = slot.node_type or ""
            if node_type in self.snapshot.free_places:
                left[node_type] -= 1
            return node_type in self._full_types or (node_type in self.snapshot.free_places and left[node_type] < 0)

        return lacks

    def _types_that_failed(self) -> frozenset[str]:
        """The node types on which a launch has failed that is in back-off: of those the engine chooses nodes, which may all be taken."""
        launch, backing_off = self._config.launch, self.snapshot.backing_off
        if launch is None or not launch.node_types or not backing_off:
            return frozenset()
        return frozenset(slot.node_type or "" for slot in launch.slots if slot.name in backing_off)

    def beyond_slots(self, places: Iterable[Place]) -> int:
        """How many devices these places' servers may extend to that no slot could use."""
        reaching = [place for place in places if place.server.reach]
        if not reaching:
            return 0
        launch = self._config.launch
        free = set(self.slots)
        with_slot = {slot.device for slot in launch.slots if slot.name in free} if launch is not None else set()
        reachable = {device for place in reaching for device in place.server.reach if self._has_room(device)}
        return len(reachable - with_slot)

    def within_reach(self, places: Iterable[Place], models: Sequence[str]) -> bool:
        """Whether these places' servers may extend to a device with room, now or once their open calls have returned."""
        if not all(self._config.models[model].may("add_device") for model in models):
            return False
        servers = {place.server.name: place.server for place in places if place.server.reach and self._may_extend(place.server, models)}
        return any(self._has_room(device) for device in {device for server in servers.values() for device in server.reach})

    def _may_extend(self, server: Server, models: Iterable[str]) -> bool:
        """Whether no model is known that cannot be on further devices of the server."""
        return not self.snapshot.resting or self.snapshot.resting.keys().isdisjoint(devices_of(server.name, model) for model in models)

    def begun(self, extensions: Iterable[tuple[Server, str]]) -> int:
        """How many of these extensions take no free device, because their server runs something there already."""
        return sum(server.name in self._holders.get(device, ()) for server, device in extensions)

    def extensions(self, places: Sequence[Place], models: Sequence[str], count: int | None = None) -> tuple[tuple[Server, str], ...]:
        """Up to `count` new places, each as a server and a device: where some of the models run already, then with the fewest places.

        None at servers where a growth of these models waits until its queue is empty, that rest after a failure, whose models lie on
        different devices, or whose models may not be added on another device.
        """
        if not all(self._config.models[model].may("add_device") for model in models):
            return ()
        servers = {
            place.server.name: place.server
            for place in places
            if place.device
            and self._may_extend(place.server, models)
            and self._resting.isdisjoint((place.server.name, *(f"{place.server.name}/{model}" for model in models)))
        }
        held = {name: {place.device for place in places if place.server.name == name} for name in servers}
        offers = [(server, device) for server in servers.values() for device in server.devices if device not in held[server.name]]
        chosen: list[tuple[Server, str]] = []
        while offers and (count is None or len(chosen) < count):
            server, device = min(offers, key=lambda offer: (not _partly(offer, models), len(held[offer[0].name])))
            if self._is_open(server, device, models):
                chosen.append((server, device))
                held[server.name].add(device)
                offers = [offer for offer in offers if offer[1] != device or self._has_room(device, chosen)]
            offers = [offer for offer in offers if offer != (server, device)]
        return tuple(chosen)

    def fitting(self, device: str, states: Models) -> Models:
        """The states with as many instances as the device's free memory holds, and no fewer than each model's minimum."""
        return self._fitted(self._memory_bytes.get(device, math.inf), states)

    def on_slot(self, slot: str, states: Models) -> Models | None:
        """The states of a server on a slot, with as many instances as its memory holds; None where the minimums need more."""
        launch = self._config.launch
        chosen = (launch.slot_by_name if launch is not None else {})[slot]
        free = min(self._memory_bytes.get(chosen.device, math.inf), math.inf if chosen.memory_bytes is None else chosen.memory_bytes)
        fitted = self._fitted(free, states)
        return fitted if sum(self._bytes_of(name, state.instances) for name, state in fitted.items()) <= free else None

    def beside(self, server: Server, held: Models, states: Models) -> Models | None:
        """States to load into a running server, with as many instances as it has memory for; None where the minimums need more.

        `held`: what the server is to run besides.
        """
        launch = self._config.launch
        limits = [slot.memory_bytes for slot in (launch.slots if launch is not None else ()) if slot.name == server.slot]
        used = sum(self._bytes_of(name, state.on(server.device)) for name, state in held.items())
        free = min([self._memory_bytes.get(server.device, math.inf), *(limit - used for limit in limits if limit is not None)])
        fitted = self._fitted(free, states)
        return fitted if sum(self._bytes_of(name, state.instances) for name, state in fitted.items()) <= free else None

    def _fitted(self, free_bytes: float, states: Models) -> Models:
        fitted = dict(states)
        if free_bytes == math.inf:
            return fitted

        def bytes_of(name: str) -> int:
            return self._bytes_of(name, fitted[name].instances)

        while sum(map(bytes_of, fitted)) > free_bytes:
            larger = [name for name, state in fitted.items() if state.instances > self._config.models[name].min_instances]
            if not larger:
                break
            name = max(larger, key=bytes_of)
            fitted[name] = replace(fitted[name], instances=fitted[name].instances - 1)
        return fitted

    def _bytes_of(self, model: str, instances: int) -> int:
        return instances * self._config.models[model].profile.instance_memory_bytes

    def take(self, device: str, server: str) -> None:
        """Note that a server is to use a device."""
        self._holders.setdefault(device, set()).add(server)
        self._slots = None
        self._bound_slots.clear()

    def take_slot(self, slot: str) -> None:
        """Note that a server is to be launched on a slot."""
        self._launched_on.add(slot)
        slots = self._config.launch.slot_by_name if self._config.launch is not None else {}
        self.take(slots[slot].device, f"launch on {slot}")

    def _is_open(self, server: Server, device: str, models: Sequence[str]) -> bool:
        profiles = [self._config.models[model] for model in models if not server.models[model].on(device)]
        needed = sum(model.min_instances * model.profile.instance_memory_bytes for model in profiles)
        holds = server.name in self._holders.get(device, ()) or self._has_room(device)
        return holds and needed <= self._memory_bytes.get(device, needed)

    def _has_room(self, device: str, chosen: Sequence[tuple[Server, str]] = ()) -> bool:
        more = sum(other == device for _, other in chosen)
        return len(self._holders.get(device, ())) + more < max(1, self._places[device])


def _waits(call: OpenCall, snapshot: Snapshot, config: ThemisConfig) -> bool:
    """Whether a growth takes longer than an initialisation, because requests wait."""
    lasts = snapshot.at_s - call.since_s > config.models[call.model].profile.instance_init_s + config.policy.tick_s
    return lasts and call.grows


def _partly(offer: tuple[Server, str], models: Sequence[str]) -> bool:
    server, device = offer
    return any(server.models[model].on(device) for model in models)
