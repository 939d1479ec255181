"""The kinds of devices that node types name, and whether they are those that profiles were measured on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.price import may_use

_LABELS = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "ray.io/accelerator-type",
)
"""Labels of nodes by which an engine or a cloud names the GPUs there."""
_GRES = re.compile(r"(?:^|,)(?:gres[:/])?gpu:([A-Za-z][\w.-]*)")
_WORDS = re.compile(r"[a-z0-9]+")
_MODEL = re.compile(r"(?=.*\d)(?=.*[a-z])")
_SIZE = re.compile(r"\d+(gb|gib|mib|g)")


def kind_of(labels: Mapping[str, str]) -> str | None:
    """The GPU that labels, or the options of a job, name; None where they name none."""
    named = next((labels[key] for key in _LABELS if key in labels), None)
    gres = _GRES.search(labels.get("gres", ""))
    return named if named is not None else gres[1] if gres is not None else None


def are_one_kind(one: str, other: str) -> bool:
    """Whether two names may be of one kind of device, such as `a100` and `gpu: NVIDIA A100-SXM4-40GB, 40960 MiB`."""
    first, second = _models(one), _models(other)
    return not first or not second or bool(first & second)


def _models(name: str) -> frozenset[str]:
    """The words of a name that are a model's, such as a100 or t4: sizes and makers are not."""
    return frozenset(word for word in _WORDS.findall(name.lower()) if _MODEL.match(word) and not _SIZE.fullmatch(word))


def declared_kinds(config: ThemisConfig) -> dict[str, str]:
    """The kinds that the settings' node types choose their nodes by."""
    node_types = config.launch.node_types if config.launch is not None else {}
    return {name: kind for name, select in node_types.items() if (kind := kind_of(select)) is not None}


def node_types_of(pipeline: PipelineConfig, config: ThemisConfig) -> tuple[str, ...]:
    """The node types that servers of a pipeline may be launched on."""
    slots = config.launch.slots if config.launch is not None else ()
    return tuple(dict.fromkeys(slot.node_type for slot in slots if slot.node_type is not None and may_use(slot, pipeline.stages, config)))


def mixed_kinds(config: ThemisConfig, kinds: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The pipelines whose servers may run on devices of several kinds, each with these by node type. `kinds`: of node types."""
    for pipeline in config.pipelines:
        named = {name: kinds[name] for name in node_types_of(pipeline, config) if name in kinds}
        if any(not are_one_kind(one, other) for one in named.values() for other in named.values()):
            yield pipeline.name, ", ".join(f"{name} has {kind}" for name, kind in named.items())
