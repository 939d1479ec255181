"""Prices of servers and instances per second: one function for usage, plans and simulator; brute force holds the kernels to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from themis_triton.core.config import ModelConfig, Placement, ThemisConfig
from themis_triton.core.fleet import ModelState


def fleet_price(servers: Iterable[tuple[float, Iterable[tuple[int, float]]]]) -> float:
    """The price of servers per second, each given as its own price and as pairs (instances, price of one) of its models."""
    return sum(server + sum(count * price for count, price in instances) for server, instances in servers)


def running_price(servers: Iterable[Mapping[str, ModelState]], config: ThemisConfig) -> float:
    """The price of running servers per second, each given as the models that it holds, at the settings' prices.

    A server has its price once for each device on which it has instances.
    """
    return fleet_price(
        (
            device_count(models) * max((server_price(config.models[name], config) for name in models), default=config.prices.server),
            ((state.instances, instance_price(config.models[name], config)) for name, state in models.items()),
        )
        for models in servers
    )


def device_count(models: Mapping[str, ModelState]) -> int:
    """On how many devices a server has instances, at least one: each has a price as a server has."""
    return max(1, len({device for state in models.values() for device, _ in state.spread}))


def server_price(model: ModelConfig, config: ThemisConfig) -> float:
    """The price of a server that holds the model: with separate stages the model's own, where it has one."""
    own = model.server_price if config.planning.placement is Placement.SEPARATE else None
    return config.prices.server if own is None else own


def instance_price(model: ModelConfig, config: ThemisConfig) -> float:
    """The price of one instance: the model's own, where it has one."""
    return config.prices.instance if model.instance_price is None else model.instance_price
