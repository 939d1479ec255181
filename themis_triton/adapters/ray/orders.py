"""What the sidecar and a server's supervisor tell each other, as plain JSON values: the order of a server, and its description."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import themis_triton
from themis_triton.adapters.processes import EMULATED_HOST_VARIABLE
from themis_triton.core.address import UNKNOWN_ADDRESS, Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig, RayLaunchConfig
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.server_proxy import ServerProxy

Json = dict[str, Any]
WAITING, PLACED, ENDED, GONE = "waiting", "placed", "ended", "gone"
"""States of a supervisor: without a node yet, on its node, its server has ended, and it is not there any more."""
ZONE = "ray.io/availability-zone"
"""The label of a node that names its zone."""
_PASSED_ON = "THEMIS_EMULATED_"
_SEPARATOR = ":"
_PROXY = ("certificate", "key", "client_ca", "binary")


def actor_name(server: str, launch: str) -> str:
    """The name of the actor of this very run of a server."""
    return f"{server}{_SEPARATOR}{launch}"


def server_name(actor: str) -> tuple[str, str]:
    """The server's name and the launch of an actor's name."""
    name, _, launch = actor.rpartition(_SEPARATOR)
    return name, launch


def launch_order(
    name: str, slot: DeviceSlot, models: Models, launch: str, config: RayLaunchConfig, deprioritize_after_s: Mapping[str, float]
) -> Json:
    """What a supervisor needs to launch the server. It has no secret: Ray's control store keeps it as long as the actor exists."""
    repositories = config.node_repositories or (config.model_repository, *config.further_repositories)
    return {
        "version": themis_triton.__version__,
        "name": name,
        "slot": slot.name,
        "device": slot.device,
        "launch": launch,
        "models": models_json(models),
        "repositories": [str(folder) for folder in repositories],
        "ensembles": {ensemble: list(needed) for ensemble, needed in config.ensembles.items()},
        "deprioritize_after_s": dict(deprioritize_after_s),
        "binary": str(config.binary) if config.binary is not None else None,
        "backend_directory": str(config.backend_directory) if config.backend_directory is not None else None,
        "proxy": _proxy_order(config.proxy),
        "model_config_name": config.model_config_name,
        "arguments": list(config.arguments),
        "ready_timeout_s": config.ready_timeout_s,
        "drain_timeout_s": config.drain_timeout_s,
        "stop_timeout_s": config.stop_timeout_s,
        "environment": {EMULATED_HOST_VARIABLE: f"ray-{config.namespace}"}
        | {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
    }


def _proxy_order(proxy: ServerProxy | None) -> Json | None:
    if proxy is None:
        return None
    return {name: str(path) if (path := getattr(proxy, name)) is not None else None for name in _PROXY}


def proxy_of(order: Json) -> ServerProxy | None:
    """The proxy that an order asks for."""
    asked = order["proxy"]
    if asked is None:
        return None
    client_ca, binary = (Path(asked[name]) if asked[name] is not None else None for name in ("client_ca", "binary"))
    return ServerProxy(Path(asked["certificate"]), Path(asked["key"]), client_ca, binary)


def node_config(order: Json, device: str, host: str) -> LocalLaunchConfig:
    """The order as a launch on the node itself: one slot with the device that Ray gave."""
    first, *further = map(Path, order["repositories"])
    return LocalLaunchConfig(
        slots=(DeviceSlot(order["slot"], device),),
        model_repository=first,
        further_repositories=tuple(further),
        model_config_name=order["model_config_name"],
        arguments=tuple(order["arguments"]),
        ready_timeout_s=order["ready_timeout_s"],
        drain_timeout_s=order["drain_timeout_s"],
        stop_timeout_s=order["stop_timeout_s"],
        ensembles={name: tuple(needed) for name, needed in order["ensembles"].items()},
        binary=Path(order["binary"]) if order["binary"] is not None else None,
        backend_directory=Path(order["backend_directory"]) if order["backend_directory"] is not None else None,
        host=host,
    )


def models_json(models: Models) -> dict[str, list[int]]:
    """The states of models as JSON."""
    return {name: [state.instances, state.max_batch, state.max_queue_delay_us] for name, state in models.items()}


def models_of(values: Mapping[str, list[int]]) -> Models:
    """The states of models from JSON."""
    return {name: ModelState(instances, batch, delay) for name, (instances, batch, delay) in values.items()}


def describe(order: Json, server: Server | None, node: str, host: str, proxied: Mapping[str, int] | None = None) -> Json:
    """The description of a server; `server` None: it has not been launched yet. `proxied`: the ports of the proxy before it."""
    ports: Json = dict(proxied or {})
    if server is not None and proxied is None:
        parts = {"grpc": server.grpc_address, "http": server.http_address, "metrics": server.metrics_address}
        ports = {name: address.port for name, address in parts.items()}
    kept = {name: order[name] for name in ("version", "name", "slot", "device", "launch", "models")}
    return {**kept, "node": node, "host": host, "ports": ports, "key": server.model_control_key if server is not None else None}


def server_of(description: Json) -> Server:
    """The server of an order or of a description, in phase LAUNCHING, without its files."""
    ports, host = description.get("ports") or {}, str(description.get("host"))
    grpc, http, metrics = (Address(host, ports[part]) if part in ports else UNKNOWN_ADDRESS for part in ("grpc", "http", "metrics"))
    return Server(
        description["name"],
        description["device"],
        grpc,
        http,
        metrics,
        Phase.LAUNCHING,
        launched=True,
        slot=description["slot"],
        models=models_of(description["models"]),
        model_control_key=description.get("key"),
        incarnation=description["launch"],
        node=description.get("node"),
        zone=description.get("zone"),
    )
