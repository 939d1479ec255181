"""Prices of servers and instances per second: one function for usage, plans and simulator; brute force holds the kernels to it.

And the price per hour of the slots on which servers run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from themis_triton.core.config import DeviceSlot, ModelConfig, PipelineConfig, Placement, ThemisConfig
from themis_triton.core.fleet import ModelState, Server


def fleet_price(servers: Iterable[tuple[float, Iterable[tuple[int, float]]]]) -> float:
    """The price of servers per second, each given as its own price and as pairs (instances, price of one) of its models."""
    return sum([server + sum([count * price for count, price in instances]) for server, instances in servers])


def running_price(servers: Iterable[Mapping[str, ModelState]], config: ThemisConfig) -> float:
    """The price of running servers per second, each given as the models that it holds, at the settings' prices.

    A server has its price once for each device on which it has instances.
    """
    prices = {name: (server_price(model, config), instance_price(model, config)) for name, model in config.models.items()}
    return fleet_price(
        [
            (
                device_count(models) * max([prices[name][0] for name in models], default=config.prices.server),
                [(state.instances, prices[name][1]) for name, state in models.items()],
            )
            for models in servers
        ]
    )


def hourly_price(servers: Iterable[Server], config: ThemisConfig) -> float | None:
    """The price per hour of the slots on which launched servers run or start; None where slots have no prices."""
    prices = hourly_prices(servers, config)
    return None if prices is None else sum(prices.values())


def hourly_prices(servers: Iterable[Server], config: ThemisConfig) -> dict[str, float] | None:
    """`hourly_price` by node type, "" for slots without one; those without a server have 0."""
    launch = config.launch
    if launch is None or not launch.is_priced:
        return None
    prices = dict.fromkeys((slot.node_type or "" for slot in launch.slots), 0.0)
    for server in servers:
        slot = launch.slot_by_name.get(server.slot or "") if server.launched else None
        if slot is not None:
            prices[slot.node_type or ""] += slot.price_per_hour or 0.0
    return prices


def planned_hourly_price(servers: int, pipeline: PipelineConfig, config: ThemisConfig) -> float | None:
    """The price per hour of a plan's servers beyond the adopted ones, on the cheapest slots that the pipeline's models may use.

    None where slots have no prices or are too few, and where stages are separate.
    """
    launch, launched = config.launch, max(0, servers - len(config.servers))
    if launch is None or not launch.is_priced or config.planning.placement is Placement.SEPARATE:
        return None
    prices = [slot.price_per_hour or 0.0 for slot in launch.slots if may_use(slot, pipeline.stages, config)]
    return sum(sorted(prices)[:launched]) if launched <= len(prices) else None


def may_use(slot: DeviceSlot, models: Iterable[str], config: ThemisConfig) -> bool:
    """Whether the settings let servers with all of these models run on a slot; models that are not of the settings do not matter."""
    bound = (config.models[name].node_types for name in models if name in config.models)
    return all(not types or slot.node_type in types for types in bound)


def device_count(models: Mapping[str, ModelState]) -> int:
    """On how many devices a server has instances, at least one: each has a price as a server has."""
    spreads = [state.spread for state in models.values() if state.spread]
    return max(1, len({device for spread in spreads for device, _ in spread})) if spreads else 1


def server_price(model: ModelConfig, config: ThemisConfig) -> float:
    """The price of a server that holds the model: with separate stages the model's own, where it has one."""
    own = model.server_price if config.planning.placement is Placement.SEPARATE else None
    return config.prices.server if own is None else own


def instance_price(model: ModelConfig, config: ThemisConfig) -> float:
    """The price of one instance: the model's own, where it has one."""
    return config.prices.instance if model.instance_price is None else model.instance_price
