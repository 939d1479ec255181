"""What an override of a model starts from: the model's own file, unless the server was told otherwise since it read that file."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from themis_triton.adapters.triton.model_config import Config

_COMPLETED = frozenset(
    {
        "name",
        "platform",
        "backend",
        "runtime",
        "max_batch_size",
        "input",
        "output",
        "instance_group",
        "default_model_filename",
        "model_transaction_policy",
    }
)
"""Fields that Triton or a backend completes, or that a change of a count or of batching sets."""
_FILLED_IN = frozenset({"version_policy", "optimization", "dynamic_batching"})
"""Fields that a server may report though the file leaves them out."""
_SET_BY_BATCHING = ("max_queue_delay_microseconds", "preferred_batch_size")


def differing_fields(own: Config, served: Config) -> list[str]:
    """The fields of a model that a server runs with other values than those of the model's file, apart from counts and batching.

    There are some where somebody loaded the model with a configuration in the call, or edited the file since.
    """
    ours, theirs = _comparable(own), _comparable(served)
    names = {field.name for field, _ in (*ours.ListFields(), *theirs.ListFields())}
    return sorted(name for name in names if not _agrees(ours, theirs, name))


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
