"""What an override of a model starts from: the model's own file, unless the server was given another configuration since it read that file.

Instance groups are taken from the server where they differ from the file: Triton knows an instance by its group's fields without name and
count, so that only the server's own groups change counts in place and keep what was loaded by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from themis_triton.adapters.triton.groups import Group
from themis_triton.adapters.triton.model_config import Config, is_complete, with_groups

_COMPLETED = frozenset(
    {
        "name",
        "platform",
        "backend",
        "runtime",
        "max_batch_size",
        "input",  # compared by themselves
        "output",
        "instance_group",
    }
)
"""Fields that Triton or a backend completes, or that a change of a count or of batching sets."""
_FILLED_IN = frozenset({"version_policy", "optimization", "dynamic_batching", "default_model_filename", "model_transaction_policy"})
"""Fields that a server may report though the file leaves them out."""
_GROUPS = "instance_group"
_TENSORS = ("input", "output")
_GROUP_FILLED_IN = ("name", "count", "kind", "gpus")
"""Fields of an instance group that Triton fills in, or that a change of a count sets."""
_SET_BY_BATCHING = ("max_queue_delay_microseconds", "preferred_batch_size")


def differing_fields(own: Config, served: Config) -> list[str]:
    """The fields of a model that a server runs with other values than those of the model's file, apart from counts and batching.

    There are some where the model was loaded with a configuration in the call, or the file was edited since.
    """
    ours, theirs = _comparable(own), _comparable(served)
    names = {field.name for field, _ in (*ours.ListFields(), *theirs.ListFields())}
    groups = [] if _matched(own, served) is not None else [_GROUPS]
    tensors = [name for name in _TENSORS if not _serves(getattr(own, name), getattr(served, name), complete=is_complete(own))]
    return sorted([*(name for name in names if not _agrees(ours, theirs, name)), *groups, *tensors])


def base_of(own: Config, served: Config, differing: list[str]) -> Config:
    """What an override starts from: `own` with the groups that the server runs, or `served` where another field differs too.

    `differing`: as by `differing_fields`. A group that the server does not run, because it was left out for fewer instances, stays.
    """
    if any(name != _GROUPS for name in differing):
        return served
    matched = _matched(own, served)
    if matched is None or not own.instance_group:
        return with_groups(own, served.instance_group)
    groups = [_copied(group) for group in own.instance_group]
    for index, group in matched.items():
        groups[index].gpus[:] = group.gpus
    return with_groups(own, groups)


def _serves(own: Iterable[Message], served: Iterable[Message], *, complete: bool) -> bool:
    """Whether a server's tensors are those of the file; backends add tensors and fields to a file that is not complete."""
    ours, theirs = ({tensor.name: tensor for tensor in tensors} for tensors in (own, served))
    if complete and ours.keys() != theirs.keys():
        return False
    return all(
        name in theirs and _holds(theirs[name], each) and (not complete or _holds(each, theirs[name])) for name, each in ours.items()
    )


def _matched(own: Config, served: Config) -> dict[int, Group] | None:
    """By the position of a group in the file, the group that the server runs for it; None: it runs another one."""
    groups = list(own.instance_group) or [ModelInstanceGroup() for _ in served.instance_group]
    matched: dict[int, Group] = {}
    for running in served.instance_group:
        free = (index for index, group in enumerate(groups) if index not in matched and _runs(group, running))
        index = next(free, None)
        if index is None:
            return None
        matched[index] = running
    return matched


def _runs(group: Group, running: Group) -> bool:
    """Whether a server's group is what Triton makes of a file's group, whatever its count."""
    if group.kind not in (ModelInstanceGroup.KIND_AUTO, running.kind) or (group.gpus and sorted(group.gpus) != sorted(running.gpus)):
        return False
    ours, theirs = _copied(group), _copied(running)
    for name in _GROUP_FILLED_IN:
        ours.ClearField(name)
        theirs.ClearField(name)
    return _holds(theirs, ours) and _holds(ours, theirs)


def _copied(group: Group) -> Group:
    copy = type(group)()
    copy.CopyFrom(group)
    return copy


def _comparable(config: Config) -> Config:
    copy = type(config)()
    copy.CopyFrom(config)
    for name in _COMPLETED:
        copy.ClearField(name)
    for name in _SET_BY_BATCHING if copy.HasField("dynamic_batching") else ():
        copy.dynamic_batching.ClearField(name)
    return copy


def _agrees(ours: Config, theirs: Config, name: str) -> bool:
    if any(field.name == name for field, _ in ours.ListFields()):
        return _holds(getattr(theirs, name), getattr(ours, name))
    return name in _FILLED_IN or _holds(getattr(ours, name), getattr(theirs, name))


def _holds(whole: Any, part: Any) -> bool:  # noqa: ANN401 - protobuf has no types
    """Whether every field that is set in `part` has the same value in `whole`; lists and maps have as many entries."""
    if isinstance(part, Message):
        return all(_holds(getattr(whole, field.name), value) for field, value in part.ListFields())
    if hasattr(part, "keys"):
        return set(whole) == set(part) and all(_holds(whole[key], part[key]) for key in part)
    if hasattr(part, "add") or hasattr(part, "append"):
        return len(whole) == len(part) and all(_holds(one, other) for one, other in zip(whole, part, strict=True))
    return bool(whole == part)
