"""Model configurations: reading a `config.pbtxt`, and building the override that makes Triton change a model in place.

Triton compares a new configuration with the loaded one, field by field: where only `instance_group` differs it adds or removes instances,
where anything else differs it reloads the whole model beside the old one. So an override is always the model's OWN file with a few fields
changed. A configuration that a server reports holds what Triton filled in; an override made from that may differ from the file in all of
that, and is then a full reload (once: after it the server holds that very configuration).

As JSON an override is protobuf's own JSON form with the field names of the `.proto` file; fields that the file leaves out stay out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelQueuePolicy

from themis_triton.adapters.triton.config_files import config_file
from themis_triton.adapters.triton.groups import (
    ON_GPU,
    Devices,
    active_groups,
    bind_home,
    count_by_device,
    is_joint,
    place_groups,
    spread_evenly,
)
from themis_triton.core.errors import ChangeRefusedError, SettingsError
from themis_triton.core.fleet import ModelState

Config: TypeAlias = Any
"""A protobuf `inference.ModelConfig`; protobuf's generated classes carry no types."""


def parse_config(text: str, source: str) -> Config:
    """Parse a `config.pbtxt`.

    Args:
        text: protobuf text format.
        source: the file's name, for the message.

    Raises:
        SettingsError: the text is not a model configuration.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise SettingsError(
            f"{source}:{error}: not a Triton model configuration; correct the file, "
            "or, if your Triton knows the field, update the package tritonclient"
        ) from error


def read_config_text(repository: Path, model: str, config_name: str | None = None) -> tuple[str, str] | None:
    """Text and name of a model's own `config.pbtxt`, or see `config_file`; None where it cannot be read here."""
    file = config_file(repository / model, config_name)
    if not (file.is_file() and os.access(file, os.R_OK)):
        return None
    return file.read_text(encoding="utf-8"), str(file)


def render_config(config: Config) -> str:
    """The text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def to_json(config: Config) -> str:
    """What `load_model(config=...)` takes; holds no field that `config` does not set."""
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None))


def state_of(config: Config, served: Config | None = None, devices: Devices | None = None) -> ModelState:
    """Instances over all groups, the largest batch that the server forms (1 without a batcher), and the batcher's delay.

    Preferred batch sizes of 1, 2, 3 … are a limit, as `with_state` sets it.

    Args:
        config: a file's configuration, or a server's.
        served: the server's, where `config` is a file's: it has the number of devices of each group.
        devices: those of a server that may use several; then the state has the instances on each.
    """
    groups = active_groups(config)
    if devices and groups and not config.HasField("ensemble_scheduling"):
        alone = state_of(config)
        return replace(alone.spread_over(count_by_device(groups, devices)), joint=is_joint(groups, devices))
    weights = _weights(groups, served)
    instances = sum(max(1, group.count) * weight for group, weight in zip(groups, weights, strict=True))
    batches = config.HasField("dynamic_batching") or config.HasField("sequence_batching")
    batcher = config.dynamic_batching
    limited = not batcher.max_queue_delay_microseconds and _is_limit(batcher.preferred_batch_size)
    largest = min(config.max_batch_size, len(batcher.preferred_batch_size)) if limited else config.max_batch_size
    return ModelState(
        instances=0 if config.HasField("ensemble_scheduling") else max(1, instances),
        max_batch=max(1, largest) if batches else 1,
        max_queue_delay_us=batcher.max_queue_delay_microseconds,
    )


def is_reload(before: ModelState, after: ModelState) -> bool:
    """Whether the change makes Triton load the model anew beside the old one, with double its memory for a while."""
    return (before.max_batch, before.max_queue_delay_us) != (after.max_batch, after.max_queue_delay_us)


def with_state(base: Config, state: ModelState, served: Config | None = None, devices: Devices | None = None) -> Config:
    """The override that brings a model to a state: `base` with other counts and, only where they differ, other batching.

    Kind, devices, names and order of the instance groups stay. Several groups keep their proportions, each at least one instance;
    when there are fewer instances than groups, the last groups are left out. A group on several GPUs grows on all
    of them at once, so a total that is no multiple of that is rounded down (never below one instance a GPU).

    For a server that may use several devices the override has one group (or the file's groups) for each, with just the instances that the
    state has there. Instances keep their processes as long as their device's group stays. A group on several GPUs is divided by the
    first change, once: Triton then makes all instances of the model anew beside the old ones, as in a reload (`ModelState.joint`).

    Args:
        base: the model's own file; or what the server reports, where the file cannot be read.
        state: the desired state.
        served: what the server reports.
        devices: those of a server that may use several.

    Raises:
        ChangeRefusedError: the model has no instances, no batching that could be changed, or cannot be on a device.
    """
    if base.HasField("ensemble_scheduling"):
        raise ChangeRefusedError(f"model {base.name} is an ensemble, which has no instances. Fix: name the models that it consists of")
    config = ModelConfig()
    config.CopyFrom(base)
    if devices:
        _set_places(config, state, served, devices)
    else:
        _set_counts(config, state.instances, served)
    if is_reload(state_of(base), state):
        _set_batching(config, state, served)
    return config


def for_launch(
    base: Config, state: ModelState, name: str, deprioritize_after_s: float | None = None, devices: Devices | None = None
) -> Config:
    """The file that a launched server reads: the state from the start, on whatever one device that server sees.

    `devices`: those of a server that may use several: the instances are bound to the first of them, or to those that the state names.
    `deprioritize_after_s`: a request that has waited this long is served after all others (Triton's DELAY, nothing is refused);
    None: as in the file.
    A queue policy of the file's own stays, and so does a queue without batches: Triton batches delayed requests with new ones;
    without batching it serves one per 500 ms.
    """
    config = with_state(base, replace(state, spread=()))
    config.name = name
    for group in config.instance_group:
        group.ClearField("gpus")
    if devices and not config.HasField("ensemble_scheduling"):
        bind_home(active_groups(config), devices)
        config = with_state(config, state, None, devices)
    batcher = config.dynamic_batching
    batches = config.HasField("dynamic_batching") and state.max_batch > 1
    if deprioritize_after_s is not None and batches and not batcher.HasField("default_queue_policy"):
        batcher.default_queue_policy.timeout_action = ModelQueuePolicy.DELAY
        batcher.default_queue_policy.default_timeout_microseconds = max(1, round(1e6 * deprioritize_after_s))
    return config


def is_complete(config: Config) -> bool:
    """Whether Triton need not ask the backend to complete the configuration, which costs a start of the model's Python."""
    return bool(config.backend and config.input and config.output)


def _weights(groups: list[Config], served: Config | None) -> list[int]:
    """Devices under each group: a count holds for every GPU that the group names, or that the server filled in."""
    reported = active_groups(served) if served is not None else []
    known = reported if len(reported) == len(groups) else groups
    return [max(1, len(group.gpus)) if group.kind in ON_GPU else 1 for group in known]


def _set_places(config: Config, state: ModelState, served: Config | None, devices: Devices) -> None:
    counts = dict(state.spread) or {next(iter(devices)): state.instances}
    loaded = active_groups(served) if served is not None else []
    groups = place_groups(config.name, counts, loaded, active_groups(config), devices)
    _keep(config, [*groups, *(group for group in config.instance_group if group.passive)])


def _set_counts(config: Config, instances: int, served: Config | None) -> None:
    if all(group.passive for group in config.instance_group):
        config.instance_group.add()
    groups = active_groups(config)
    weights = _weights(groups, served)
    counts = spread_evenly(instances, weights, [max(1, group.count) for group in groups])
    for group, count in zip(groups, counts, strict=True):
        group.count = count
    kept = [group for group in config.instance_group if group.passive or group.count > 0]
    if len(kept) < len(config.instance_group):
        _keep(config, kept)


def with_groups(base: Config, groups: Iterable[Config]) -> Config:
    """The configuration with other instance groups."""
    config = ModelConfig()
    config.CopyFrom(base)
    _keep(config, groups)
    return config


def _keep(config: Config, groups: Iterable[Config]) -> None:
    copies = ModelConfig()
    copies.instance_group.extend(groups)
    config.ClearField("instance_group")
    config.instance_group.extend(copies.instance_group)


def _set_batching(config: Config, state: ModelState, served: Config | None) -> None:
    if config.HasField("sequence_batching"):
        raise ChangeRefusedError(
            f"model {config.name} batches sequences, and such batching is never changed. "
            "Fix: set max_batch to the max_batch_size of its config.pbtxt"
        )
    largest = config.max_batch_size or (served.max_batch_size if served is not None else 0)
    if largest == 0 and state.max_batch > 1:
        raise ChangeRefusedError(
            f"model {config.name} has max_batch_size 0: batches of {state.max_batch} are impossible. Fix: set max_batch: 1"
        )
    if largest:
        config.max_batch_size = max(largest, state.max_batch)
    if state.max_batch > 1 or config.HasField("dynamic_batching"):
        _set_batcher(config.dynamic_batching, state, bounded=state.max_batch < largest)


def _set_batcher(batcher: Config, state: ModelState, *, bounded: bool) -> None:
    """The delay, and, `bounded`, a smaller limit of batches than the model's own: `max_batch_size` would refuse requests of more rows.

    Without a delay Triton forms no batch larger than the largest preferred one. With one it does, so that there is no limit then.
    """
    batcher.SetInParent()
    batcher.max_queue_delay_microseconds = state.max_queue_delay_us
    if bounded and not state.max_queue_delay_us:
        batcher.ClearField("preferred_batch_size")
        batcher.preferred_batch_size.extend(range(1, state.max_batch + 1))
    elif _is_limit(batcher.preferred_batch_size):
        batcher.ClearField("preferred_batch_size")


def _is_limit(preferred: Sequence[int]) -> bool:
    """Whether preferred batch sizes are all up to a limit, as `_set_batcher` makes them."""
    return len(preferred) > 0 and list(preferred) == list(range(1, len(preferred) + 1))
