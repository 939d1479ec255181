"""Instance groups by device: which device a group is on, and one group for each device of a server that may use several.

Triton knows an instance by the fields of its group without `name` and `count`, and by its GPU. So a group for each device makes one more
instance on another device a change in place. On a CPU the group's `host_policy` stands for the device (any name is accepted; with
`--host-policy=NAME,…` it also binds the instances to a NUMA node or to cores). So it does for instances of KIND_CPU beside GPUs: those of
a pre-processing model that work for the model on a GPU are said to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from themis_triton.core.errors import ChangeRefusedError, DeviceRefusedError
from themis_triton.core.fleet import Server

Group: TypeAlias = Any
"""A protobuf `inference.ModelInstanceGroup`; protobuf's generated classes carry no types."""
Devices: TypeAlias = Mapping[str, int]
"""The devices of a server that may use several, home first, each with the number of its GPU in Triton."""
ON_GPU = (ModelInstanceGroup.KIND_AUTO, ModelInstanceGroup.KIND_GPU)


def numbered_devices(server: Server) -> dict[str, int]:
    """The devices of a server that may use several; empty for a server with one.

    A launched server sees just its devices, in their order, so that the number is the position. An adopted one sees all GPUs of its
    host; there it is the N of `gpu:N`, and the position for devices named by UUID.
    """
    if not server.reach:
        return {}
    ends = [device.partition(":")[2] for device in server.devices]
    by_position = server.launched or not all(end.isdecimal() for end in ends)
    return {device: position if by_position else int(ends[position]) for position, device in enumerate(server.devices)}


def active_groups(config: Any) -> list[Group]:  # noqa: ANN401 - protobuf has no types
    """The groups whose instances serve."""
    return [group for group in config.instance_group if not group.passive]


def devices_of(group: Group, devices: Devices) -> list[str | None]:
    """The devices that hold `count` instances of a group each; None for a GPU that is not one of the server's."""
    home = _home(devices)
    if home.startswith("gpu:") and group.gpus and group.kind in ON_GPU:
        names = {number: device for device, number in devices.items()}
        return [names.get(gpu) for gpu in group.gpus]
    return [group.host_policy if group.host_policy in devices else home]


def count_by_device(groups: Iterable[Group], devices: Devices) -> dict[str, int]:
    """Instances on each device, in the order of the devices. Those on GPUs that are not the server's are left out."""
    counts = dict.fromkeys(devices, 0)
    for group in groups:
        for device in devices_of(group, devices):
            if device is not None:
                counts[device] += max(1, group.count)
    return counts


def expected_devices(groups: list[Group], devices: Devices) -> frozenset[str]:
    """The devices that a server's instances may take by the groups of the model's own file; Triton chooses where these name no GPU."""
    free_choice = _home(devices).startswith("gpu:") and (not groups or any(g.kind in ON_GPU and not g.gpus for g in groups))
    return frozenset(devices) if free_choice else frozenset(filter(None, (device for g in groups for device in devices_of(g, devices))))


def is_joint(groups: Iterable[Group], devices: Devices) -> bool:
    """Whether a group is on several devices: then the first change makes its instances anew, in one group for each device."""
    return any(len(devices_of(group, devices)) > 1 for group in groups)


def bind_home(groups: Iterable[Group], devices: Devices) -> None:
    """Make the home device of groups explicit, so that the first change onto another device is in place. For a server to be launched."""
    home = _home(devices)
    for group in groups:
        if home.startswith("cpu:"):
            group.host_policy = group.host_policy or home
        elif group.kind in ON_GPU:
            group.gpus[:] = [devices[home]]


def place_groups(model: str, counts: Mapping[str, int], loaded: list[Group], own: list[Group], devices: Devices) -> list[Group]:
    """Groups with these instances on each device.

    A device's loaded groups stay as they are but for their counts, in their proportions. A device without any gets those of the model's own
    file, else one like the home device's. A group on several GPUs becomes one for each of them. Instances on GPUs that are not
    the server's stay.

    Args:
        model: the model's name, for the names of new groups.
        counts: instances by device.
        loaded: the groups that the server reports; empty where it does not serve the model.
        own: the groups of the model's own file.
        devices: the server's.

    Raises:
        ChangeRefusedError: a device is not the server's.
        DeviceRefusedError: the model's instances cannot be bound to a GPU.
    """
    if unknown := sorted(counts.keys() - devices.keys()):
        raise ChangeRefusedError(
            f"model {model}: {', '.join(unknown)} is invalid: expected one of the server's devices {', '.join(devices)}"
        )
    there, elsewhere = _by_device(model, loaded, devices)
    file, _ = _by_device(model, own, devices)
    home = next((groups for groups in (there.get(_home(devices)), file.get(_home(devices)), *there.values()) if groups), None)
    result: list[Group] = []
    for device in devices:
        if counts.get(device, 0) > 0:
            groups = there.get(device) or file.get(device) or [_new_group(model, device, home, devices)]
            result += _with_counts(groups, counts[device])
    return [*result, *elsewhere]


def spread_evenly(instances: int, weights: list[int], shares: list[int]) -> list[int]:
    """Counts with Σ count·weight ≤ instances as near as they get: one each in turn, then where a group is furthest below its share."""
    counts = [0] * len(weights)
    counts[0] = 1
    left = instances - weights[0]
    for index in range(1, len(weights)):
        if weights[index] <= left:
            counts[index] = 1
            left -= weights[index]
    while fitting := [index for index, weight in enumerate(weights) if counts[index] and weight <= left]:
        index = min(fitting, key=lambda candidate: counts[candidate] / shares[candidate])
        counts[index] += 1
        left -= weights[index]
    return counts


def _home(devices: Devices) -> str:
    return next(iter(devices))


def _copied(group: Group) -> Group:
    copy = ModelInstanceGroup()
    copy.CopyFrom(group)
    return copy


def _by_device(model: str, groups: list[Group], devices: Devices) -> tuple[dict[str, list[Group]], list[Group]]:
    """Copies of the groups by device, each on one device, and those on GPUs that are not the server's."""
    by_device: dict[str, list[Group]] = {}
    elsewhere: list[Group] = []
    for group in groups:
        names = devices_of(group, devices)
        for position, device in enumerate(names):
            part = _copied(group)
            if len(names) > 1:
                part.gpus[:] = [group.gpus[position]]
                part.name = f"{model}_{device or f'gpu:{group.gpus[position]}'}"
            if device is None:
                elsewhere.append(part)
            else:
                by_device.setdefault(device, []).append(_bound(part, device, devices))
    return by_device, elsewhere


def _bound(group: Group, device: str, devices: Devices) -> Group:
    """A group that leaves its GPU to Triton, on its device alone."""
    if device.startswith("gpu:") and group.kind in ON_GPU and not group.gpus:
        group.gpus[:] = [devices[device]]
    return group


def _new_group(model: str, device: str, like: list[Group] | None, devices: Devices) -> Group:
    """A group on a device that has none. Emulated models know their device from its name."""
    group = _copied(like[0]) if like else ModelInstanceGroup()
    group.name = f"{model}_{device}" if device != _home(devices) else ""
    if device.startswith("cpu:") or group.kind == ModelInstanceGroup.KIND_CPU:
        group.host_policy = device
        return group
    if group.kind not in ON_GPU:
        kind = ModelInstanceGroup.Kind.Name(group.kind)
        raise DeviceRefusedError(
            f"model {model}: its instances are of {kind}, which cannot be bound to {device}. "
            "Fix: write KIND_GPU in its config.pbtxt, or serve it on a server with one device"
        )
    group.gpus[:] = [devices[device]]
    return group


def _with_counts(groups: list[Group], instances: int) -> list[Group]:
    counts = spread_evenly(instances, [1] * len(groups), [max(1, group.count) for group in groups])
    for group, count in zip(groups, counts, strict=True):
        group.count = count
    return [group for group in groups if group.count]
