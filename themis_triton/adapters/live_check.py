"""Checks the servers, models, Envoy, binaries, devices and ports that the settings name. Changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.findings import Finding, fine, missing, unanswered, warning
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.local.check import check_devices, check_envoy_binary, check_launch, ports_free
from themis_triton.adapters.triton.client import KEY_HEADER, is_not_explicit, is_restricted, new_client
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, EnvoyConfig, LocalLaunchConfig, ThemisConfig

TIMEOUT_S = 5.0
_NO_MODEL = "themis/no-such-model"
"""No model can have this name, so unloading it does nothing but show whether model control is open."""


async def check_live(config: ThemisConfig) -> list[Finding]:
    """One finding per item checked, in the order of the settings; what is missing is a finding, not an exception."""
    async with HttpClient(TIMEOUT_S) as http:
        servers, envoy, devices, launch = await asyncio.gather(
            asyncio.gather(*(_check_server(config, server, http) for server in config.servers)),
            _check_envoy(config.envoy, http),
            check_devices(config),
            check_launch(config.launch) if isinstance(config.launch, LocalLaunchConfig) else _nothing(),
        )
        status = await _check_status(config.status.address, http)
    models_by_server = {server.name: models for server, (_, models) in zip(config.servers, servers, strict=True)}
    return [
        *(finding for findings, _ in servers for finding in findings),
        *_check_pipelines(config, models_by_server),
        *launch,
        *devices,
        *envoy,
        status,
    ]


async def _nothing() -> list[Finding]:
    return []


async def _check_server(config: ThemisConfig, server: AdoptedServer, http: HttpClient) -> tuple[list[Finding], frozenset[str]]:
    """Findings, and the models in the server's index."""
    client = new_client(server.grpc_address)
    try:
        ready = await _check_ready(server, client)
        findings, models_held = [ready], frozenset[str]()
        if ready.exit_code == 0:
            findings.append(await _check_control(server, client))
            index, models_held = await _check_models(config, server, client)
            findings += index
    finally:
        await client.close()
    return [*findings, *_check_repository(config, server), await _check_http(server, http), await _check_metrics(server, http)], models_held


async def _check_ready(server: AdoptedServer, client: Any) -> Finding:  # noqa: ANN401 - tritonclient has no types
    what = f"servers.{server.name}.grpc"
    try:
        if await client.is_server_ready(client_timeout=TIMEOUT_S):
            return fine(what, f"{server.grpc_address} is ready")
    except InferenceServerException as error:
        remedy = "start the server, or correct the address"
        return unanswered(what, f"{server.grpc_address} does not answer ({error.message()})", remedy)
    return warning(what, f"{server.grpc_address} answers, but is not ready", "see the server's log; a model may have failed to load")


async def _check_control(server: AdoptedServer, client: Any) -> Finding:  # noqa: ANN401 - tritonclient has no types
    what = f"servers.{server.name}: model control"
    try:
        await client.unload_model(_NO_MODEL, headers=_headers(server), client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        if is_not_explicit(error):
            remedy = "start the server with --model-control-mode=explicit --load-model=*"
            return unanswered(what, "the server does not take loads, so instances cannot be changed", remedy)
        if is_restricted(error):
            key = f"servers.{server.name}.model_control_key"
            return unanswered(
                what, "the server asks for a key, or for another one", f"write the key of --grpc-restricted-protocol as {key}"
            )
        return unanswered(what, f"the server refuses ({error.message()})", "see the server's log")
    return fine(what, "explicit, so that instances can be changed in place")


async def _check_models(
    config: ThemisConfig,
    server: AdoptedServer,
    client: Any,  # noqa: ANN401 - tritonclient has no types
) -> tuple[list[Finding], frozenset[str]]:
    what = f"servers.{server.name}: models"
    try:
        index = await client.get_model_repository_index(headers=_headers(server), client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        return [
            unanswered(what, f"the server does not list its models ({error.message()})", "resolve the finding above first")
        ], frozenset()
    states = {entry.name: entry.state or "not loaded" for entry in index.models}
    required = {stage for pipeline in config.pipelines for stage in pipeline.stages}
    absent = sorted(required - states.keys())
    idle = sorted(f"{name} ({states[name]})" for name in required & states.keys() if states[name] != "READY")
    findings = []
    if absent:
        remedy = "put them into its model repository; without them it does not serve their pipelines"
        findings.append(warning(what, f"the server's repository has no {', '.join(absent)}", remedy))
    if idle:
        findings.append(warning(what, f"not serving: {', '.join(idle)}", "load them, or see the server's log for why they failed"))
    if not findings:
        findings.append(fine(what, f"all {len(required)} models of the pipelines are ready"))
    return findings, frozenset(states)


def _headers(server: AdoptedServer) -> dict[str, str] | None:
    return {KEY_HEADER: server.model_control_key} if server.model_control_key is not None else None


def _check_repository(config: ThemisConfig, server: AdoptedServer) -> list[Finding]:
    folder = server.model_repository
    if folder is None:
        return []
    what = f"servers.{server.name}.model_repository"
    absent = [name for name in config.models if not (folder / name / "config.pbtxt").is_file()]
    if absent:
        remedy = "correct the path, or write their config.pbtxt; until then the first change of their counts reloads them"
        return [warning(what, f"{folder} has no config.pbtxt of {', '.join(absent)}", remedy)]
    return [fine(what, f"{folder} has every model's config.pbtxt")]


async def _check_http(server: AdoptedServer, http: HttpClient) -> Finding:
    what = f"servers.{server.name}.http"
    try:
        await http.get(server.http_address.url("/v2/health/live"))
    except HttpError as error:
        reason = str(error)
        return unanswered(
            what, f"{server.http_address} does not answer ({reason})", "start the server with --allow-http=true, or correct the address"
        )
    return fine(what, f"{server.http_address} is alive")


async def _check_metrics(server: AdoptedServer, http: HttpClient) -> Finding:
    what = f"servers.{server.name}.metrics"
    remedy = "start the server with --allow-metrics=true, or correct the address"
    try:
        models = await fetch_metrics(http, server.metrics_address)
    except HttpError as error:
        reason = str(error)
        return unanswered(what, f"{server.metrics_address.url('/metrics')} does not answer ({reason})", remedy)
    except ValueError as error:
        return unanswered(what, f"{server.metrics_address.url('/metrics')} is not a metrics page ({error})", remedy)
    return fine(what, f"{server.metrics_address} shows {len(models)} models")


def _check_pipelines(config: ThemisConfig, models_by_server: dict[str, frozenset[str]]) -> list[Finding]:
    """Without launches, some adopted server must hold every stage of each pipeline."""
    if config.launch is not None:
        return []
    return [
        missing(f"pipelines.{p.name}", "no adopted server holds all its models", "put them into one server's repository, or add `launch:`")
        for p in config.pipelines
        if not any(models.issuperset(p.stages) for models in models_by_server.values())
    ]


async def _check_envoy(envoy: EnvoyConfig, http: HttpClient) -> list[Finding]:
    listening = await _listeners(envoy.admin_address, http)
    addresses = (("envoy.grpc_listen", envoy.grpc_listen), ("envoy.http_listen", envoy.http_listen), ("envoy.admin", envoy.admin_address))
    if listening is not None:
        elsewhere = [address for _, address in addresses[:2] if address not in listening]
        if not elsewhere:
            return [fine("envoy.admin", f"the Envoy at {envoy.admin_address} listens on both addresses for clients")]
        state = f"an Envoy answers at {envoy.admin_address}, but does not listen on {' or '.join(map(str, elsewhere))}"
        return [unanswered("envoy.admin", state, "correct the addresses, or choose another admin port if that Envoy is another sidecar's")]
    if not envoy.managed:
        remedy = "start Envoy, or set envoy.managed: true"
        return [unanswered("envoy.admin", f"no Envoy answers at {envoy.admin_address}", remedy)]
    return [await check_envoy_binary(envoy), *ports_free(addresses)]


async def _listeners(admin_address: Address, http: HttpClient) -> frozenset[Address] | None:
    """The addresses that the Envoy behind this admin address listens on; None when no Envoy answers there."""
    try:
        answer = await http.get_json(admin_address.url("/listeners"), {"format": "json"})
        statuses = answer.get("listener_statuses", [])
        sockets = [status["local_address"]["socket_address"] for status in statuses]
        return frozenset(Address(socket["address"], int(socket["port_value"])) for socket in sockets)
    except (HttpError, ValueError, KeyError, AttributeError):
        return None


async def _check_status(address: Address, http: HttpClient) -> Finding:
    """The port is free, or something answers there, which may be Themis itself, running."""
    (finding,) = ports_free([("status.address", address)])
    if not finding.exit_code:
        return finding
    try:
        await http.get(address.url("/"))
    except HttpError as error:
        if error.status is None:
            return finding
    return warning("status.address", f"something answers at {address}", "expected if it is the running sidecar; else choose another port")
