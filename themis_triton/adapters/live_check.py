"""Checks the servers, models, Envoy, binaries, devices and ports that the settings name. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.client_auth import auth_name
from themis_triton.adapters.envoy.clusters import WATCHED_MODELS
from themis_triton.adapters.envoy.version import Version, lack, needed_version
from themis_triton.adapters.findings import Finding, fine, missing, unanswered, warning
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.kubernetes.check import check_cluster
from themis_triton.adapters.local.check import (
    check_devices,
    check_envoy_binary,
    check_launch,
    inotify_instances,
    ports_free,
    unreadable_models,
)
from themis_triton.adapters.node_types_check import check_node_types
from themis_triton.adapters.ray.check import check_cluster as check_ray
from themis_triton.adapters.remote_control_check import NO_MODEL, check_remote_control
from themis_triton.adapters.slurm.check import check_jobs
from themis_triton.adapters.triton.abilities import lacking_extensions, lacks_pending
from themis_triton.adapters.triton.change_check import check_changes, check_probed
from themis_triton.adapters.triton.client import KEY_HEADER, is_not_explicit, is_restricted, new_client
from themis_triton.adapters.triton.config_files import config_file, model_folder
from themis_triton.adapters.triton.metrics import parse_metrics
from themis_triton.core.address import Address
from themis_triton.core.config import (
    AdoptedServer,
    EnvoyConfig,
    KubernetesLaunchConfig,
    LaunchConfig,
    LocalLaunchConfig,
    RayLaunchConfig,
    SlurmLaunchConfig,
    ThemisConfig,
)
from themis_triton.core.errors import ServerError

TIMEOUT_S = 5.0
_WATCHES_PER_MODEL, _OTHER_WATCHES, _WATCHES_OF_TLS, _WATCHES_OF_KEYS = 2, 10, 4, 1
_NOTHING_SCALES = "its models are routed to, and nothing is scaled, because there is no `launch` section"


async def check_live(config: ThemisConfig) -> list[Finding]:
    """One finding per item checked, in the order of the settings; what is missing is a finding, not an exception."""
    async with HttpClient(TIMEOUT_S) as http:
        servers, envoy, devices, launch = await asyncio.gather(
            asyncio.gather(*(_check_server(config, server, http) for server in config.servers)),
            _check_envoy(config.envoy, needed_version(config)),
            check_devices(config),
            _check_launch(config.launch, config.models),
        )
        status = await _check_status(config.status.address, http)
    models_by_server = {server.name: models for server, (_, models) in zip(config.servers, servers, strict=True)}
    return [
        *(finding for findings, _ in servers for finding in findings),
        *_check_pipelines(config, models_by_server),
        *_check_callers(config, models_by_server),
        *check_probed(config),
        *launch,
        *await check_node_types(config),
        *devices,
        *envoy,
        *check_watches(config, models_by_server),
        status,
    ]


async def _check_launch(launch: LaunchConfig | None, models: Iterable[str]) -> list[Finding]:
    match launch:
        case LocalLaunchConfig():
            return await check_launch(launch, models)
        case KubernetesLaunchConfig():
            return [*await check_cluster(launch), *await asyncio.to_thread(lambda: list(unreadable_models(launch, models)))]
        case RayLaunchConfig():
            return [*await check_ray(launch), *await asyncio.to_thread(lambda: list(unreadable_models(launch, models)))]
        case SlurmLaunchConfig():
            return [*await check_jobs(launch), *await asyncio.to_thread(lambda: list(unreadable_models(launch, models)))]
        case _:
            return []


async def _check_server(config: ThemisConfig, server: AdoptedServer, http: HttpClient) -> tuple[list[Finding], frozenset[str]]:
    """Findings, and the models in the server's index."""
    client = new_client(server.grpc_address)
    try:
        ready = await _check_ready(server, client)
        findings, models_held = [ready], frozenset[str]()
        if ready.exit_code == 0:
            findings.append(await _check_abilities(server, client))
            findings.append(await _check_control(config, server, client))
            findings += await check_remote_control(server, http, TIMEOUT_S)
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
        remedy = "start the server, or correct the address or the `tls` section beside it"
        return unanswered(what, f"{server.grpc_address} does not answer ({error.message()})", remedy)
    return warning(what, f"{server.grpc_address} answers, but is not ready", "see the server's log; a model may have failed to load")


async def _check_abilities(server: AdoptedServer, client: Any) -> Finding:  # noqa: ANN401 - tritonclient has no types
    what = f"servers.{server.name}: version"
    try:
        metadata = await client.get_server_metadata(client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        return unanswered(what, f"the server does not describe itself ({error.message()})", "see the server's log")
    lacking = list(lacking_extensions(metadata.extensions))
    if lacking:
        return warning(what, f"{metadata.name} {metadata.version} lacks {'; '.join(lacking)}", "use a Triton that has them")
    return fine(what, f"{metadata.name} {metadata.version} has the extensions that Themis uses")


async def _check_control(config: ThemisConfig, server: AdoptedServer, client: Any) -> Finding:  # noqa: ANN401 - tritonclient has no types
    what = f"servers.{server.name}: model control"
    try:
        await client.unload_model(NO_MODEL, headers=_headers(server), client_timeout=TIMEOUT_S)
    except InferenceServerException as error:
        if is_not_explicit(error):
            remedy = "start the server with --model-control-mode=explicit --load-model=*"
            works = "its models are routed to, and plans scale by launching servers" if config.launch is not None else _NOTHING_SCALES
            return warning(what, f"the server takes no loads, so its instance counts stay as they are; {works}", remedy)
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
    required = {model for pipeline in config.pipelines for model in (*pipeline.stages, pipeline.front)}
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
    for name in sorted(required & set(config.models) & {name for name, state in states.items() if state == "READY"}):
        findings += await _check_changes(config, server, name, client)
    return findings, frozenset(states)


async def _check_changes(config: ThemisConfig, server: AdoptedServer, model: str, client: Any) -> list[Finding]:  # noqa: ANN401 - as above
    try:
        served = (await client.get_model_config(model, client_timeout=TIMEOUT_S)).config
    except InferenceServerException as error:
        what = f"servers.{server.name}: model {model}"
        return [warning(what, f"the server does not show its configuration ({error.message()})", "see the server's log")]
    return check_changes(server, config.models[model], served)


def _headers(server: AdoptedServer) -> dict[str, str] | None:
    return {KEY_HEADER: server.model_control_key} if server.model_control_key is not None else None


def _check_repository(config: ThemisConfig, server: AdoptedServer) -> list[Finding]:
    folder = server.model_repository
    what = f"servers.{server.name}.model_repository"
    if folder is None:
        found = "is not set: the first change of counts reloads each model without sequences, once, with its memory twice for that time"
        return [warning(what, found, "name the folder of --model-repository, if it can be read here")]
    model_folders = {name: model_folder(server, name) or folder / name for name in config.models}
    absent = [name for name, own in model_folders.items() if not config_file(own, server.model_config_name).is_file()]
    folders = " and ".join(map(str, (folder, *server.further_repositories)))
    have = "have" if server.further_repositories else "has"
    if absent:
        remedy = "correct the path, name all of the server's repositories in a list, or write their config.pbtxt"
        remedy += "; until then the first change of their counts reloads them"
        return [warning(what, f"{folders} {have} no config.pbtxt of {', '.join(absent)}", remedy)]
    return [fine(what, f"{folders} {have} every model's config.pbtxt")]


async def _check_http(server: AdoptedServer, http: HttpClient) -> Finding:
    what = f"servers.{server.name}.http"
    try:
        await http.get_at(server.http_address, "/v2/health/live")
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
        page = await http.get_at(server.metrics_address, "/metrics")
        models = parse_metrics(page.decode())
    except HttpError as error:
        reason = str(error)
        return unanswered(what, f"{server.metrics_address.url('/metrics')} does not answer ({reason})", remedy)
    except ValueError as error:
        return unanswered(what, f"{server.metrics_address.url('/metrics')} is not a metrics page ({error})", remedy)
    if lacks_pending(page):
        found = "nv_inference_pending_request_count is not shown: a backlog in the server's queues is not seen"
        return warning(what, found, "use Triton 2.34 or later")
    return fine(what, f"{server.metrics_address} shows {len(models)} models")


def _check_pipelines(config: ThemisConfig, models_by_server: dict[str, frozenset[str]]) -> list[Finding]:
    """Without launches, some adopted server must hold every stage of each pipeline."""
    if config.launch is not None:
        return []
    return [
        missing(f"pipelines.{p.name}", "no adopted server holds all its models", "put them into one server's repository, or add `launch:`")
        for p in config.pipelines
        if not any(models.issuperset((*p.stages, p.front)) for models in models_by_server.values())
    ]


def _check_callers(config: ThemisConfig, models_by_server: dict[str, frozenset[str]]) -> list[Finding]:
    """A caller that the settings do not scale is one that a server has; without an answer that is not known."""
    held = frozenset[str]().union(*models_by_server.values())
    unknown = sorted(config.callees.keys() - {*config.called_models, *config.models, *held}) if held else []
    return [warning(f"calls.{name}", f"no adopted server has a model {name}", "correct the name of the caller") for name in unknown]


async def _check_envoy(envoy: EnvoyConfig, needed: Version | None) -> list[Finding]:
    admin = EnvoyAdmin(envoy)
    listening = await admin.listeners()
    with suppress(ServerError):  # it is said below that it does not answer
        await admin.node_id()
    await admin.close()
    lacking = lack(f"the Envoy at {envoy.admin_address}", admin.version, needed)
    if lacking is not None:
        found, _, remedy = lacking.partition(". Fix: ")
        return [missing("envoy.admin", found, remedy)]
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
    return [
        await check_envoy_binary(envoy, needed),
        *ports_free((key, address) for key, address in addresses if address.socket_path is None),
    ]


def check_watches(config: ThemisConfig, models_by_server: dict[str, frozenset[str]]) -> list[Finding]:
    """Envoy takes an inotify instance for each file that it watches, and ends at once where a user has too few."""
    models = len({*config.models, *(model for models in models_by_server.values() for model in models)})
    others = _OTHER_WATCHES + (_WATCHES_OF_TLS if config.envoy.tls is not None else 0)
    others += _WATCHES_OF_KEYS if auth_name(config.envoy) is not None else 0
    needed, limit = _WATCHES_PER_MODEL * min(models, WATCHED_MODELS) + others, inotify_instances()
    if not config.envoy.managed or limit is None or needed <= limit:
        return []
    found = f"{models} models take {needed} inotify instances, and a user may have {limit} here"
    return [missing("envoy", found, f"raise the limit: sysctl -w fs.inotify.max_user_instances={2 * needed}")]


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
