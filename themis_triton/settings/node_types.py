"""The section `launch.node_types`: how many servers each kind of node may have, what it costs, and what its nodes are chosen by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from themis_triton.core.config import DeviceSlot, LaunchKind
from themis_triton.settings.kinds import Count, Section, Size, refusal

JOB_OPTIONS = ("partition", "constraint", "gres", "account", "qos")
"""The options of a job by which Slurm chooses its node."""


class NodeTypeSettings(Section):
    """Servers on one kind of node, such as an instance type, a partition, or spot capacity."""

    servers: Count = Field(description="how many servers may be launched on such nodes, each with a device of its own")
    price_per_hour: float | None = Field(
        default=None, ge=0, description="price of one such server per hour, in your currency; either all node types have one or none"
    )
    select: dict[str, str] = Field(
        min_length=1,
        description="what its nodes are chosen by: labels that a node has (kubernetes, ray); "
        f"{', '.join(JOB_OPTIONS)} of the job, in place of those of `launch.slurm` (slurm)",
    )
    memory: Size | None = Field(
        default=None, description="device memory that one such server may use; by default `memory` of the kind's own section"
    )


def check_section(kind: LaunchKind, node_types: Mapping[str, NodeTypeSettings], count: str, counted: object) -> None:
    """Raise the validator's error where the number of servers is said twice or not at all, or a job has no such option."""
    if bool(node_types) == (counted is not None):
        key = f"`{kind.value}.{count}`"
        fault = f"both {key} and `node_types` are set" if node_types else f"neither {key} nor `node_types` is set"
        raise refusal(fault, "one of them", f"write `{count}` for nodes of one kind, or `node_types` with the servers of each")
    for name, each in node_types.items() if kind is LaunchKind.SLURM else ():
        unknown = next((option for option in each.select if option not in JOB_OPTIONS), None)
        value = next((value for value in each.select.values() if not value or any(part.isspace() for part in value)), None)
        if unknown is not None or value is not None:
            fault = f"node_types.{name}.select: {unknown if unknown is not None else repr(value)} is invalid"
            raise refusal(fault, f"{', '.join(JOB_OPTIONS)}, each one word", "say the rest in launch.slurm, which holds for all node types")
    check_priced((f"node_types.{name}", each.price_per_hour) for name, each in node_types.items())


def check_priced(prices: Iterable[tuple[str, float | None]]) -> None:
    """Raise the validator's error where some have a price and others have none."""
    named = list(prices)
    without = [name for name, price in named if price is None]
    if without and len(without) < len(named):
        fix = f"add price_per_hour to {without[0]}"
        raise refusal(f"{without[0]} has no price_per_hour, and others have", "a price for each or for none", fix)


def slots_of(node_types: Mapping[str, NodeTypeSettings], kind: str, count: int | None, memory: Size | None) -> tuple[DeviceSlot, ...]:
    """A slot for each server, with a device of its own: `KIND-N`, or `TYPE-N` with node types."""
    if not node_types:
        return tuple(
            DeviceSlot(f"{kind}-{number}", f"{kind}:{number}", int(memory) if memory is not None else None)
            for number in range(1, (count or 0) + 1)
        )
    named = [(name, number, each) for name, each in node_types.items() for number in range(1, each.servers + 1)]
    return tuple(
        DeviceSlot(
            f"{name}-{number}",
            f"{kind}:{index}",
            int(limit) if (limit := each.memory if each.memory is not None else memory) is not None else None,
            name,
            each.price_per_hour,
        )
        for index, (name, number, each) in enumerate(named, 1)
    )
