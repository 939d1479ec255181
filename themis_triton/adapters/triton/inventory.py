"""Reads what a running Triton holds; changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup
from tritonclient.utils import InferenceServerException

from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.triton.client import KEY_HEADER, is_restricted, new_client
from themis_triton.adapters.triton.groups import ON_GPU, active_groups
from themis_triton.adapters.triton.metrics import fetch_metrics, fetch_statistics
from themis_triton.adapters.triton.model_config import Config, state_of
from themis_triton.adapters.triton.structure import stateful_models, structure_of
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError
from themis_triton.core.inventory import HeldModel, Inventory
from themis_triton.core.observation import BatchCounters

_TIMEOUT_S = 5.0
_AT_ONCE = 16


async def read_inventory(grpc_address: Address, http_address: Address, metrics_address: Address, key: str | None = None) -> Inventory:
    """The READY models of a server, in order. `key`: of its model control, where its repository is restricted.

    Raises:
        ServerError: an address does not answer, or the server refuses to list its models.
    """
    client, headers = new_client(grpc_address), {KEY_HEADER: key} if key is not None else None
    try:
        index = await client.get_model_repository_index(headers=headers, client_timeout=_TIMEOUT_S)
        names = sorted({model.name for model in index.models if model.state == "READY"})
        configs = await _configs(client, names)
    except InferenceServerException as error:
        if is_restricted(error):
            fix = "give --model-control-key" if key is None else "correct --model-control-key"
            raise ServerError(f"--from {grpc_address}: the server asks for a key to list its models. Fix: {fix}") from error
        fix = "check that it runs and that this is its gRPC address"
        raise ServerError(f"--from: {grpc_address} did not answer ({error.message()}). Fix: {fix}") from error
    finally:
        await client.close()
    batches = await _batches(http_address, metrics_address)
    structures = {name: structure_of(config) for name, config in configs.items()}
    stateful = stateful_models(structures)
    return Inventory(
        grpc_address,
        http_address,
        metrics_address,
        models=tuple(
            HeldModel(
                name,
                *_instances(config),
                state_of(config).max_batch,
                name in stateful,
                tuple(step.model_name for step in config.ensemble_scheduling.step),
                _devices(config),
                batches.get(name, ()),
                config.backend == "python",
            )
            for name, config in configs.items()
        ),
        model_control_key=key,
    )


async def _configs(client: Any, names: list[str]) -> dict[str, Config]:  # noqa: ANN401 - tritonclient has no types
    """The models' configurations, a few at a time."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def read(name: str) -> Config:
        async with limit:
            return (await client.get_model_config(name, client_timeout=_TIMEOUT_S)).config

    return dict(zip(names, await asyncio.gather(*map(read, names)), strict=True))


async def _batches(http_address: Address, metrics_address: Address) -> dict[str, tuple[BatchCounters, ...]]:
    async with HttpClient(_TIMEOUT_S) as http:
        try:
            await fetch_metrics(http, metrics_address)
        except (HttpError, ValueError) as error:
            fix = "start the server with --allow-metrics=true, or give --metrics HOST:PORT"
            raise ServerError(f"--metrics {metrics_address}: {error}: expected Triton's metrics. Fix: {fix}") from error
        try:
            return await fetch_statistics(http, http_address)
        except (HttpError, ValueError) as error:
            fix = "start the server with --allow-http=true, or give --http HOST:PORT"
            raise ServerError(f"--http {http_address}: {error}: expected Triton's statistics. Fix: {fix}") from error


def _instances(config: Config) -> tuple[int, int]:
    """The fewest and the most instances on one of the model's devices; instances that name no GPU are on one."""
    counts: dict[int | None, int] = {}
    for group in active_groups(config):
        for device in group.gpus if group.kind in ON_GPU and group.gpus else [None]:
            counts[device] = counts.get(device, 0) + max(1, group.count)
    return min(counts.values(), default=state_of(config).instances), max(counts.values(), default=state_of(config).instances)


def _devices(config: Config) -> tuple[str, ...]:
    """The devices that the instance groups name; `cpu:0` for instances on the processor, none for those that choose one by themselves."""
    groups = active_groups(config)
    gpus = [f"gpu:{gpu}" for group in groups if group.kind in ON_GPU for gpu in group.gpus]
    free = config.HasField("ensemble_scheduling") or any(group.kind == ModelInstanceGroup.KIND_MODEL for group in groups)
    return tuple(dict.fromkeys(gpus)) or (() if free else ("cpu:0",))
