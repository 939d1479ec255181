"""Checks of devices and slots: names are unique, and the devices of one server belong together."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.settings.loading import Loaded, mapping
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath


def check_devices(loaded: Loaded) -> Iterator[Problem]:
    """Slots with a name that is taken, and devices that cannot belong to one server."""
    yield from _slots(loaded)
    yield from _devices(loaded)


def _slots(loaded: Loaded) -> Iterator[Problem]:
    taken = {str(name): "an adopted server" for name in loaded.section("servers")}
    for index, slot in enumerate((loaded.launch.slots or []) if loaded.launch else []):
        if slot.name is None:
            continue
        if slot.name in taken:
            fault = f"{slot.name} is the name of {taken[slot.name]} too"
            yield loaded.source.problem(("launch", "slots", index, "name"), fault, "each name once", "rename one of the two")
        taken.setdefault(slot.name, "another slot")


def _devices(loaded: Loaded) -> Iterator[Problem]:
    """The devices of one server are of one kind and named in one way, and none of several is MIG: a process can use just one MIG device."""
    for (_, home), *others in _devices_of_servers(loaded):
        for path, device in others:
            if device != home and "MIG" in (_device_kind(home), _device_kind(device)):
                fault = f"{device} beside {home}: a server can use just one device if that is MIG"
                yield loaded.source.problem(path, fault, "whole GPUs", "name whole GPUs, or start one server for each MIG device")
            elif _device_kind(device) != _device_kind(home):
                fault = f"{device} and {home} cannot belong to one server"
                fix = f"name it as {home} is named, or give it to another server"
                yield loaded.source.problem(path, fault, f"a device of the kind of {home}", fix)


def _devices_of_servers(loaded: Loaded) -> Iterator[list[tuple[KeyPath, str]]]:
    """The devices of each server that names several, and those of launched servers with a reach."""
    for name, server in loaded.section("servers").items():
        devices = mapping(server).get("devices")
        if isinstance(devices, list) and devices:
            yield [(("servers", name, "devices", index), str(device)) for index, device in enumerate(devices)]
    if loaded.launch is not None and loaded.launch.reach:
        slots: list[tuple[KeyPath, str]] = [
            (("launch", "slots", index), slot.device) for index, slot in enumerate(loaded.launch.slots or [])
        ]
        yield [*slots, *((("launch", "reach", index), device) for index, device in enumerate(loaded.launch.reach))]


def _device_kind(device: str) -> str:
    """`cpu`, `gpu` (by number), `GPU` or `MIG` (by UUID)."""
    kind, _, end = device.partition(":")
    return kind if end.isdecimal() else end.partition("-")[0]
