"""Servers join, leave and die behind a real Envoy while requests run; nothing fails and everything is counted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http

from tests.e2e.conftest import Launch
from tests.e2e.envoy_setup import (
    Gateway,
    Load,
    free_config,
    load_until,
    outcome,
    read,
    running_envoy,
    table_of,
    tensors,
    under_load,
    values,
    write,
)
from tests.e2e.test_envoy import stream_answers
from tests.e2e.xds_setup import Edges, running_edges, until_listening
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.addresses import resolved_config
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.clusters import WATCHED_MODELS
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.names import Protocol, model_cluster
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.render import RenderInput
from themis_triton.adapters.envoy.stats import EnvoyStats
from themis_triton.adapters.envoy.xds.resources import Node
from themis_triton.adapters.envoy.xds.routes import SharedRoutes
from themis_triton.adapters.envoy.xds.server import XdsServer
from themis_triton.adapters.envoy.xds.shares import OWN, ArrivalShares
from themis_triton.adapters.envoy.xds.stats import SummedStats
from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.triton.client import KEY_HEADER
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.observation import RouteReading
from themis_triton.core.routes import ModelRoute, RouteLimit, RouteTable

pytestmark = pytest.mark.e2e

MODEL = "video-classifier"
RATE_RPS = 40.0
BURST = 40
MAX_INOTIFY_INSTANCES = 74


@pytest.fixture(scope="module")
def servers(launch: Launch) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        state = {MODEL: ModelState(2, 8)}
        yield stack.enter_context(launch("one", state)), stack.enter_context(launch("two", state, "cpu-b"))


@pytest.fixture
def gateway(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[Gateway]:
    with running_envoy(tmp_path, table_of(*servers)) as running:
        yield running


def loads(gateway: Gateway) -> list[tuple[str, str, float, bool]]:
    return [
        (gateway.config.grpc_listen.authority, MODEL, RATE_RPS, False),
        (gateway.config.http_listen.authority, MODEL, RATE_RPS / 2, True),
    ]


def crowded(*members: Server) -> RouteTable:
    """Twice as many models as have endpoint files of their own; the one with traffic is among those that have none."""
    table = table_of(*members)
    more = {f"{when}-{number}": ModelRoute() for number in range(WATCHED_MODELS) for when in ("before", "later")}
    return replace(table, models=more | table.models)


def weighted(*members: Server) -> RouteTable:
    """The first member takes three times as many requests as the others."""
    table = table_of(*members)
    return replace(table, models={name: replace(route, weights={members[0].name: 3}) for name, route in table.models.items()})


def inotify_instances(gateway: Gateway) -> int:
    """Those of Envoy; Linux gives a user 128."""
    process = EnvoyProcess(gateway.config, gateway.state_directory).find()
    assert process is not None
    links: list[str] = []
    for each in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(each.readlink()))
    return sum("inotify" in link for link in links)


@pytest.mark.timed  # with few others at a time: its Envoy takes most of the inotify instances that Linux gives a user
def test_servers_join_and_leave_under_load(gateway: Gateway, servers: tuple[Server, Server]) -> None:
    one, two = servers
    instances: list[int] = []

    async def change() -> None:
        few = (table_of(one), table_of(one, two), table_of(two), table_of(two, one))
        for table in (*few, crowded(two), crowded(one, two), weighted(one, two), crowded(one), table_of(one, two)):
            await write(gateway.config, table)
            instances.append(inotify_instances(gateway))
            await asyncio.sleep(0.3)

    results = asyncio.run(under_load(loads(gateway), change))
    for load in results:
        assert not load.errors
        assert load.sent > RATE_RPS / 2
    assert max(instances) <= MAX_INOTIFY_INSTANCES
    # Clusters were replaced while they had requests, and each request still counts once.
    reading = gateway.read([MODEL])[MODEL]
    assert (reading.arrivals, reading.failures, reading.in_flight) == (sum(load.sent for load in results), 0, 0)


def test_envoys_elsewhere_take_routes_over_xds_under_load_refuse_bad_ones_and_outlive_the_sidecar(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    one, two = (replace(server, zone=zone) for server, zone in zip(servers, ("west", "east"), strict=True))
    envoy = asyncio.run(resolved_config(free_config(tmp_path)))
    both = table_of(one, two)
    later = RouteTable({**both.models, "later": ModelRoute(both.any)}, both.any)

    def rendered(table: RouteTable, config: EnvoyConfig = envoy) -> RenderInput:
        return RenderInput(config, table, {}, None)

    async def change(server: XdsServer, nodes: tuple[Node, ...]) -> None:
        for table in (both, table_of(two), later, table_of(two, one)):
            await server.publish(rendered(table))
            await asyncio.sleep(0.3)
        with pytest.raises(ServerError, match=r"Envoy edge-\w+ refused new routes and keeps its last ones: .*Expected positive duration"):
            await server.publish(rendered(both, replace(envoy, header_timeout_s=-1.0)))
        await until(lambda: [(each.in_step, each.refused) for each in server.proxies] == [(True, None)] * 2)
        await server.close()
        await asyncio.sleep(0.3)
        next_one = XdsServer(server.config)
        await next_one.start()
        await next_one.publish(rendered(table_of(two, one)))
        await until(lambda: len(next_one.proxies) == 2)
        await next_one.publish(rendered(both))
        assert {each.in_step for each in next_one.proxies} == {True}
        # Envoys that come back say what they have, and get no cluster and no listener again.
        assert next_one.sent_bytes < server.sent_bytes / 10
        await next_one.close()

    async def whole(edges: Edges) -> list[Load]:
        server = XdsServer(edges.config)
        await server.start()
        await until(lambda: len(server.proxies) == 2)
        assert {each.in_step for each in server.proxies} == {False}
        await server.publish(rendered(table_of(one)))
        await until_listening(edges.nodes)
        sending = [(node.grpc_listen.authority, MODEL, RATE_RPS, False) for node in edges.nodes]
        results = await under_load(sending, lambda: change(server, edges.nodes))
        for node, load in zip(edges.nodes, results, strict=True):
            assert node.stats is not None
            stats = edges.stats(node.stats, (MODEL,))
            (reading,), error = await stats.read_routes()
            await stats.close()
            assert (error, reading.arrivals, reading.failures) == (None, load.sent, 0)
        return results

    with running_edges(tmp_path, envoy) as edges:
        assert [load.errors for load in asyncio.run(whole(edges))] == [{}, {}]


def in_zones(*members: Server, limit: RouteLimit | None = None) -> RouteTable:
    """The first server in the west, the second one in the east."""
    zones = {"one": "west", "two": "east"}
    endpoints = tuple(replace(each, zone=zones[each.server]) for each in table_of(*members).any)
    return RouteTable({MODEL: ModelRoute(endpoints, limit=limit)}, endpoints)


async def answered_by(servers: tuple[Server, Server], node: Node, count: int = 20) -> tuple[float, float]:
    """How many of some requests through an Envoy each server has answered."""
    async with HttpClient(5.0) as http, triton_aio.InferenceServerClient(node.grpc_listen.authority) as client, asyncio.timeout(15.0):

        async def now() -> list[float]:
            return [(await fetch_metrics(http, each.metrics_address))[MODEL].success for each in servers]

        before = await now()
        for _ in range(count):
            await client.infer(MODEL, tensors(triton_grpc, values(4)))
        while True:  # a client may have its answer before that is counted
            first, second = (after - then for after, then in zip(await now(), before, strict=True))
            if first + second == count:
                return first, second


async def stays_in_zone(servers: tuple[Server, Server], node: Node, number: int) -> None:
    """Wait until an Envoy has seen who is healthy; then all of its requests go to the server of its own zone."""
    async with asyncio.timeout(15.0):
        while True:
            if (await answered_by(servers, node))[number] == 20:
                break
    assert (await answered_by(servers, node, 40))[number] == 40


async def refused(node: Node, stats: SummedStats) -> int:
    """How many requests of one and a half seconds an Envoy refuses."""
    await stats.read_routes()
    end = asyncio.Event()
    sending = asyncio.create_task(load_until(node.grpc_listen.authority, MODEL, 50.0, end))
    for _ in range(5):
        await asyncio.sleep(0.3)
        await stats.read_routes()
    end.set()
    load = await sending
    assert all("Themis: too much" in error for error in load.errors)
    return load.errors.total()


def test_clients_stay_in_their_zone_as_servers_come_and_go_and_a_limit_follows_them(servers: tuple[Server, Server], tmp_path: Path) -> None:
    one, two = servers
    envoy = asyncio.run(resolved_config(free_config(tmp_path)))

    async def scenario(edges: Edges) -> None:
        (west, east), arrivals, server = edges.nodes, ArrivalShares(), XdsServer(edges.config)
        async with AsyncExitStack() as stack:
            routes = SharedRoutes(EnvoyFiles(envoy), server, arrivals)
            stack.push_async_callback(routes.close)
            own = EnvoyStats(envoy, (MODEL,), SystemClock())
            stats = SummedStats(own, lambda: server.nodes, lambda address: edges.stats(address, (MODEL,)), arrivals)
            stack.push_async_callback(stats.close)
            await routes.write(in_zones(one, two))
            await until(lambda: len(server.proxies) == 2)
            await until_listening(edges.nodes)
            await stays_in_zone(servers, west, 0)
            await stays_in_zone(servers, east, 1)
            await routes.write(in_zones(two))
            assert await answered_by(servers, west) == (0, 20)
            await routes.write(in_zones(two, one))
            await stays_in_zone(servers, west, 0)
            await stays_in_zone(servers, east, 1)
            await routes.write(in_zones(one, two, limit=RouteLimit(100.0, 30, reason="Themis: too much")))
            assert await refused(west, stats) > 0  # it has a third of the limit, as each of three Envoys whose requests are not known
            arrivals.add(OWN, MODEL, 0.0, SystemClock().now_s())  # the Envoy of the files, which does not run here
            assert await routes.share_limits()
            for _ in range(6):  # the requests to the other zone are remembered for seconds
                if not await refused(west, stats):
                    break
                await routes.share_limits()
            else:
                pytest.fail("an Envoy that has all requests, half as many as the limit, refuses some of them")

    with running_edges(tmp_path, envoy) as edges:
        asyncio.run(scenario(edges))


async def until(met: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(timeout_s):
        while True:
            if met():
                return
            await asyncio.sleep(0.02)


def test_models_come_and_go_under_load(gateway: Gateway, servers: tuple[Server, Server]) -> None:
    table = table_of(*servers)
    more = RouteTable({**table.models, "later": ModelRoute(table.any)}, table.any)
    other = RouteTable({**table.models, "another": ModelRoute(table.any[:1])}, table.any)

    async def change() -> None:
        for each in (more, other, table):
            await write(gateway.config, each)

    for load in asyncio.run(under_load(loads(gateway), change)):
        assert not load.errors
    assert not (gateway.config.directory / f"eds/{model_cluster(Protocol.GRPC, 'later')}.json").exists()


def test_a_killed_server_costs_no_request(gateway: Gateway, servers: tuple[Server, Server], launch: Launch) -> None:
    with launch("victim", {MODEL: ModelState(2, 8)}) as victim:
        assert victim.process is not None
        killed = psutil.Process(victim.process.pid)
        gateway.write(crowded(servers[0], victim))

        async def kill() -> None:
            killed.send_signal(signal.SIGKILL)
            await asyncio.sleep(1.5)
            # The clusters are replaced while a server of theirs does not answer.
            await write(gateway.config, crowded(*servers, victim))
            await asyncio.sleep(0.5)
            await write(gateway.config, crowded(*servers))

        result = asyncio.run(under_load(loads(gateway), kill))
    reading = gateway.read([MODEL])[MODEL]
    assert [load.errors for load in result] == [{}, {}]
    # Whatever was retried is still one arrival, and no failure.
    assert reading.arrivals == sum(load.sent for load in result)
    assert reading.failures == 0


def test_two_of_three_servers_killed_at_once_cost_no_request(gateway: Gateway, servers: tuple[Server, Server], launch: Launch) -> None:
    with launch("victim-a", {MODEL: ModelState(1, 8)}) as a, launch("victim-b", {MODEL: ModelState(1, 8)}, "cpu-b") as b:
        assert a.process is not None
        assert b.process is not None
        killed = [psutil.Process(a.process.pid), psutil.Process(b.process.pid)]
        gateway.write(table_of(servers[0], a, b))

        async def kill() -> None:
            for process in killed:
                process.send_signal(signal.SIGKILL)
            await asyncio.sleep(2.5)

        result = asyncio.run(under_load(loads(gateway), kill))
    assert [load.errors for load in result] == [{}, {}]


def test_a_full_queue_refuses_each_call_once_and_no_server_is_asked_instead(gateway: Gateway, servers: tuple[Server, Server]) -> None:
    async def burst() -> tuple[int, int]:
        client = triton_aio.InferenceServerClient(gateway.config.grpc_listen.authority)
        calls = (client.infer(MODEL, tensors(triton_grpc, values())) for _ in range(BURST))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await client.close()
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all("maximum queue size" in str(error) for error in errors), errors
        return len(answers) - len(errors), len(errors)

    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(short_queue(server))
        answered, refused = asyncio.run(burst())
    assert answered >= len(servers)
    assert refused > BURST // 4
    assert asyncio.run(sent_upstream(gateway)) == {"upstream_rq_total": BURST, "upstream_rq_retry": 0}


async def sent_upstream(gateway: Gateway) -> dict[str, int]:
    """Requests for the model that Envoy sent to servers, and how many of them were retries."""
    cluster = f"cluster.{model_cluster(Protocol.GRPC, MODEL)}."
    admin = EnvoyAdmin(gateway.config)
    try:
        entries = await admin.stats(rf"^{re.escape(cluster)}upstream_rq_(total|retry)$")
    finally:
        await admin.close()
    return {entry["name"].removeprefix(cluster): int(entry["value"]) for entry in entries}


@contextmanager
def short_queue(server: Server) -> Iterator[None]:
    """One instance, batches of one, and room for two waiting requests; then as before."""
    headers = {KEY_HEADER: server.model_control_key}
    with triton_grpc.InferenceServerClient(server.grpc_address.authority) as client:
        config = client.get_model_config(MODEL, as_json=True)["config"]
        policy = {"default_queue_policy": {"max_queue_size": 2}}
        short = {**config, "max_batch_size": 1, "instance_group": [{"count": 1, "kind": "KIND_CPU"}], "dynamic_batching": policy}
        client.load_model(MODEL, headers=headers, config=json.dumps(short))
        try:
            yield
        finally:
            client.load_model(MODEL, headers=headers, config=json.dumps(config))


def test_statistics_count_every_request_once(gateway: Gateway) -> None:
    with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        for _ in range(5):
            client.infer(MODEL, tensors(triton_grpc, values()))
        for _ in range(3):
            client.is_model_ready(MODEL)
        assert outcome(client.infer, MODEL, tensors(triton_grpc, values()), model_version="9")[0] != "StatusCode.OK"
    client = triton_http.InferenceServerClient(gateway.config.http_listen.authority)
    for _ in range(4):
        client.infer(MODEL, tensors(triton_http, values()))
    assert outcome(client.infer, MODEL, tensors(triton_http, values()), model_version="9")[0] == "404"
    client.close()
    stream_answers(gateway.config.grpc_listen, [MODEL] * 6)

    reading = asyncio.run(settled(gateway, 11))
    assert reading.arrivals == 5 + 1 + 4 + 1 + 6
    assert reading.failures == 2
    assert reading.in_flight == 0
    assert list(reading.latency.counts) == sorted(reading.latency.counts)
    # An emulated classifier takes 18 ms, of which a busy Envoy may start to count late; a failure takes less than 10 ms.
    below = dict(zip(reading.latency.bounds_ms, reading.latency.counts, strict=True))
    assert below[10.0] <= 2
    assert below[16.0] <= 2
    assert below[1000.0] == 11


async def settled(gateway: Gateway, requests: int) -> RouteReading:
    """The reading once the histogram has all requests: Envoy merges it every quarter of a second."""
    async with asyncio.timeout(5.0):
        while True:
            reading = (await read(gateway.config, [MODEL]))[MODEL]
            if reading.latency.counts[-1] == requests:
                return reading
            await asyncio.sleep(0.05)


def test_requests_in_flight_are_seen(gateway: Gateway) -> None:
    seen: list[float] = []

    async def look() -> None:
        for _ in range(10):
            seen.append((await read(gateway.config, [MODEL]))[MODEL].in_flight)
            await asyncio.sleep(0.03)

    asyncio.run(under_load(loads(gateway), look))
    assert max(seen) >= 1


def test_a_running_envoy_is_adopted_and_its_addresses_are_not_taken_twice(gateway: Gateway) -> None:
    async def adopt() -> None:
        process = EnvoyProcess(gateway.config, gateway.state_directory)
        first = await process.ensure()
        assert first is not None
        assert first == await process.ensure() == process.find()
        await process.close()

        stranger = EnvoyProcess(replace(gateway.config, directory=gateway.state_directory / "elsewhere"), gateway.state_directory)
        with pytest.raises(EnvironmentCheckError, match=r"envoy\.admin: another Envoy .* answers at"):
            await stranger.ensure()
        await stranger.close()

        config = replace(free_config(gateway.state_directory / "second"), http_listen=gateway.config.http_listen)
        await write(config, RouteTable({}, ()))
        second = EnvoyProcess(config, gateway.state_directory)
        with pytest.raises(EnvironmentCheckError, match=r"envoy\.http_listen: .* cannot be listened on"):
            await second.ensure()
        await second.close()

    asyncio.run(adopt())


def test_what_envoy_refuses_is_told_and_put_back(gateway: Gateway, servers: tuple[Server, Server]) -> None:
    async def refuse() -> None:
        process = EnvoyProcess(gateway.config, gateway.state_directory)
        files = EnvoyFiles(replace(gateway.config, http_listen=servers[0].http_address), log_file=process.log_file)
        with pytest.raises(ServerError, match=r"(?s)Envoy refused lds/listeners\.json .*Address already in use"):
            await files.write(table_of(*servers))
        await files.close()
        await process.close()

    before = (gateway.config.directory / "lds/listeners.json").read_text(encoding="utf-8")
    for load in asyncio.run(under_load(loads(gateway), refuse)):
        assert not load.errors
    assert (gateway.config.directory / "lds/listeners.json").read_text(encoding="utf-8") == before


def test_files_that_envoy_does_not_understand_stop_the_start(tmp_path: Path) -> None:
    async def start() -> None:
        config = free_config(tmp_path)
        await write(config, RouteTable({"model": ModelRoute()}, ()))
        clusters = config.directory / "cds/clusters.json"
        clusters.write_text(clusters.read_text(encoding="utf-8").replace("connect_timeout", "connect_time"), encoding="utf-8")
        process = EnvoyProcess(config, tmp_path)
        with pytest.raises(ServerError, match=r"(?s)Envoy refuses its configuration .*connect_time"):
            await process.ensure()
        assert process.find() is None
        await process.close()

    asyncio.run(start())


def test_an_envoy_that_is_not_managed_must_be_there(tmp_path: Path) -> None:
    async def ensure() -> None:
        config = replace(free_config(tmp_path), managed=False)
        process = EnvoyProcess(config, tmp_path)
        with pytest.raises(EnvironmentCheckError, match=r"start it with `envoy -c .*envoy\.json`"):
            await process.ensure()
        await process.close()

    asyncio.run(ensure())


def test_a_killed_envoy_is_started_again_with_its_routes(servers: tuple[Server, Server], tmp_path: Path) -> None:
    with running_envoy(tmp_path, table_of(*servers)) as gateway:

        async def kill_and_restart() -> None:
            process = EnvoyProcess(gateway.config, gateway.state_directory)
            first = process.find()
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(first.pid)], timeout=5.0)
            second = await process.ensure()
            assert second is not None
            assert second.pid != first.pid
            await process.close()

        asyncio.run(kill_and_restart())
        with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
            assert client.infer(MODEL, tensors(triton_grpc, values())).as_numpy("OUTPUT").shape == (1, 3)


def test_envoy_accepts_whatever_a_model_is_called(tmp_path: Path) -> None:
    names = ["plain", "a.b", "with space", "näme", "%2F", "(x|y)*[0]^$", "~", '"quoted"', "back\\slash", "x" * 255]
    with running_envoy(tmp_path, RouteTable(dict.fromkeys(names, ModelRoute()), ())) as gateway:
        for name in names:
            with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
                assert outcome(client.infer, name, tensors(triton_grpc, values()))[0] == "StatusCode.UNAVAILABLE"
        arrivals = {name: reading.arrivals for name, reading in gateway.read(names).items()}
    assert arrivals == dict.fromkeys(names, 1.0)
