"""Routes over xDS: what is sent in which order, what an Envoy's answers lead to, and what its statistics add up to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format

from tests.certificates import self_made_certificate
from themis_triton.adapters.envoy.client_auth import read_auth_filter
from themis_triton.adapters.envoy.downstream_tls import link_files
from themis_triton.adapters.envoy.limits import written_limits
from themis_triton.adapters.envoy.render import RenderInput, route_configurations
from themis_triton.adapters.envoy.stats import Routes
from themis_triton.adapters.envoy.xds.messages import message_class, packed
from themis_triton.adapters.envoy.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    ENVOYS,
    LISTENER,
    ROUTES,
    SECRET,
    URL,
    Node,
    Packer,
    Resource,
    listeners,
)
from themis_triton.adapters.envoy.xds.server import SERVICE, XdsServer
from themis_triton.adapters.envoy.xds.shares import OWN, STEADY, STEADY_REFUSING, ArrivalShares, steady, with_shares
from themis_triton.adapters.envoy.xds.stats import SummedStats
from themis_triton.adapters.envoy.xds.stream import EnvoyStream
from themis_triton.commands.envoy_bootstrap_command import EnvoyFlags, envoy_bootstrap_command
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.address import Address
from themis_triton.core.client_auth import JwtConfig
from themis_triton.core.config import EnvoyConfig, XdsConfig
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.core.routes import Endpoint, ModelRoute, RouteLimit, RouteTable
from themis_triton.settings import load_settings
from themis_triton.settings.starter import starter

CONFIG = EnvoyConfig(Address("127.0.0.1", 8001), Address("127.0.0.1", 8000), Address("127.0.0.1", 9901), Path("/state/envoy"))
ONE = Endpoint("one", Address("127.0.0.1", 1001), Address("127.0.0.1", 1000), "west")
TWO = Endpoint("two", Address("127.0.0.1", 2001), Address("127.0.0.1", 2000))
TABLE = RouteTable({"detect": ModelRoute((ONE, TWO))}, (ONE, TWO))
NODE = Node("edge", "west", Address("127.0.0.2", 9001), Address("127.0.0.2", 9000), None)
Request, Response = (message_class(f"envoy.service.discovery.v3.DeltaDiscovery{kind}") for kind in ("Request", "Response"))


def test_everything_that_files_can_hold_can_be_sent_and_pem_files_are_inside(tmp_path: Path) -> None:
    tls = self_made_certificate(tmp_path / "tls")
    keys = tmp_path / "keys"
    keys.write_text("client 0123456789abcdef\n")
    keys.chmod(0o600)
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{"kty": "RSA"}]}))
    limit = RouteLimit(25.5, 8, 0.5, "Themis: too much", 20.0, class_header="x-priority", classes=("high", "normal"))
    address = Address("127.0.0.1", 1001, tls=True, server_name="a", ca=tls["ca"], certificate=tls["certificate"], key=tls["key"])
    secure = replace(ONE, grpc_address=address)
    many = {f"model-{number}": ModelRoute((secure,)) for number in range(40)}
    table = RouteTable(
        {"detect": ModelRoute((secure, TWO), limit=limit, weights={"one": 3}), "idle": ModelRoute()} | many, (secure,), (TWO,), (ONE,)
    )
    pem = ListenerTls(Path(tls["certificate"]), Path(tls["key"]), Path(tls["ca"]))
    guarded = replace(CONFIG, api_keys=keys, max_request_s=5.0, tls=pem)
    other = replace(CONFIG, jwt=JwtConfig("issuer", jwks, ("audience",)), resend_broken=False)
    link_files(replace(guarded, directory=tmp_path), "")
    for config in (guarded, other):
        own = replace(config, directory=tmp_path)
        sent = Packer().pack(RenderInput(own, table, {}, read_auth_filter(own)))
        assert len(sent[CLUSTER]) == 2 * (len(table.models) + 3)
        assert sent[CLUSTER].keys() == sent[ENDPOINTS].keys()
        assert set(listeners(own, NODE)) == {"grpc", "http"}
        assert sent[ROUTES].keys() == {"grpc", "http"}
        clusters = b"".join(each.body for each in sent[CLUSTER].values())
        assert str(tmp_path).encode() not in clusters + b"".join(each.body for each in listeners(own, NODE).values())
        assert Path(tls["ca"]).read_bytes() in clusters
        assert set(sent.get(SECRET, ())) == ({"certificate", "client_ca"} if config is guarded else set())


def test_values_that_are_defaults_are_sent_and_unknown_fields_are_refused_by_name() -> None:
    body = packed({"@type": f"{URL}{ROUTES}", "name": "", "validate_clusters": False})
    read = message_class(ROUTES).FromString(body)
    assert read.HasField("name")
    assert json_format.MessageToDict(read, preserving_proto_field_name=True) == {"name": "", "validate_clusters": False}
    with pytest.raises(ServerError, match=r"'x' cannot be sent over xDS: .*no_such_field"):
        packed({"@type": f"{URL}{CLUSTER}", "name": "x", "no_such_field": 1})


# One stream.


def resource(text: str) -> Resource:
    return Resource(text, text.encode())


def asked(
    kind: str, *names: str, nonce: str = "", error: str = "", has: dict[str, str] | None = None, without: tuple[str, ...] = ()
) -> Any:
    request = Request(type_url=URL + kind, resource_names_subscribe=names, resource_names_unsubscribe=without, response_nonce=nonce)
    request.initial_resource_versions.update(has or {})
    if error:
        request.error_detail.message = error
    return request


def sent(stream: EnvoyStream, target: dict[str, dict[str, Resource]]) -> list[tuple[str, dict[str, str], list[str], str]]:
    """Type, versions by name, removed names and nonce of each response."""
    shown = []
    for each in stream.responses(target):
        versions = {resource.name: resource.version for resource in each.resources}
        shown.append((each.type_url.removeprefix(URL), versions, list(each.removed_resources), each.nonce))
    return shown


def test_an_envoy_gets_what_it_asks_for_once_then_what_changes_and_what_goes() -> None:
    stream, target = EnvoyStream(), {CLUSTER: {"a": resource("a1")}, ENDPOINTS: {"a": resource("e1")}}
    stream.receive(asked(CLUSTER))
    assert sent(stream, target) == [(CLUSTER, {"a": "a1"}, [], "1")]
    assert not stream.is_in_step(target)
    stream.receive(asked(CLUSTER, nonce="1"))
    assert not stream.is_in_step(target), "the cluster waits for endpoints that it has not asked for yet"
    stream.receive(asked(ENDPOINTS, "a", "absent"))
    assert sent(stream, target) == [(ENDPOINTS, {"a": "e1"}, ["absent"], "2")]
    stream.receive(asked(ENDPOINTS, nonce="2"))
    assert (sent(stream, target), stream.is_in_step(target)) == ([], True)
    target = {CLUSTER: {"a": resource("a1")}, ENDPOINTS: {"a": resource("e2")}}
    assert not stream.is_in_step(target)
    assert sent(stream, target) == [(ENDPOINTS, {"a": "e2"}, [], "3")]
    stream.receive(asked(ENDPOINTS, nonce="3"))
    assert sent(stream, {CLUSTER: {"a": resource("a2")}, ENDPOINTS: target[ENDPOINTS]}) == [
        (CLUSTER, {"a": "a2"}, [], "4"),
        (ENDPOINTS, {"a": "e2"}, [], "5"),
    ], "a cluster that is made anew needs its endpoints again"
    assert sent(stream, {CLUSTER: {}, ENDPOINTS: {}})[0] == (CLUSTER, {}, ["a"], "6")


def test_one_that_comes_back_says_what_it_has_and_gets_the_rest() -> None:
    stream, target = EnvoyStream(), {CLUSTER: {"a": resource("a1"), "b": resource("b2")}}
    stream.receive(asked(CLUSTER, has={"a": "a1", "b": "b1", "gone": "1"}))
    assert sent(stream, target) == [(CLUSTER, {"b": "b2"}, ["gone"], "1")]
    stream.receive(asked(ROUTES, "grpc", has={"grpc": "r1"}))
    assert sent(stream, {**target, ROUTES: {"grpc": resource("r1")}}) == [(ROUTES, {"grpc": "r1"}, [], "2")]
    stream.receive(asked(ROUTES, without=("grpc",), nonce="2"))
    assert sent(stream, {**target, ROUTES: {"grpc": resource("r3")}}) == []


def test_a_refusal_is_kept_with_its_reason_until_something_else_is_taken() -> None:
    stream, good, bad = EnvoyStream(), {ROUTES: {"grpc": resource("good")}}, {ROUTES: {"grpc": resource("bad")}}
    stream.receive(asked(ROUTES, "grpc"))
    sent(stream, good)
    stream.receive(asked(ROUTES, nonce="1"))
    sent(stream, bad)
    stream.receive(asked(ROUTES, nonce="2", error="no such\n field"))
    assert (stream.refused, stream.refusals) == ("no such field", 1)
    assert sent(stream, bad) == [], "the same is not sent again and again"
    assert sent(stream, good) == [(ROUTES, {"grpc": "good"}, [], "3")]
    stream.receive(asked(ROUTES, nonce="3"))
    assert (stream.refused, stream.is_in_step(good)) == (None, True)


# The server, with Envoys that this test plays.


class PlayedEnvoy:
    """Asks as Envoy does and takes all but what `refuses` says; `seen`: the names that came, by type, in order."""

    def __init__(self, port: int, name: str, refuses: Callable[[Any], str | None] = lambda _response: None) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._name, self._refuses = name, refuses
        self.seen: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            yield await self._outbox.get()

    async def run(self) -> None:
        call = self._channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources", Request.SerializeToString, Response.FromString)
        first = asked(CLUSTER)
        first.node.id = self._name
        first.node.metadata.update({"grpc_listen": "127.0.0.2:9001", "http_listen": "127.0.0.2:9000"})
        for each in (first, asked(LISTENER), asked(ROUTES, "grpc", "http"), asked(ENDPOINTS, ENVOYS)):
            self._outbox.put_nowait(each)
        async for response in call(self._requests()):
            kind, names = response.type_url.removeprefix(URL), tuple(each.name for each in response.resources)
            self.seen.append((kind, names, tuple(response.removed_resources)))
            self._outbox.put_nowait(asked(kind, nonce=response.nonce, error=self._refuses(response) or ""))
            if kind == CLUSTER:
                self._outbox.put_nowait(asked(ENDPOINTS, *names))

    async def close(self) -> None:
        await self._channel.close()


async def all_connected(server: XdsServer, count: int) -> None:
    while True:
        if len(server.nodes) == count:
            return
        await asyncio.sleep(0.01)


async def all_in_step(server: XdsServer) -> None:
    while True:
        if all(each.in_step for each in server.proxies):
            return
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(*envoys: Callable[[int], PlayedEnvoy]) -> AsyncIterator[tuple[XdsServer, list[PlayedEnvoy]]]:
    server = XdsServer(XdsConfig(Address("127.0.0.1", 0)), timeout_s=5.0)
    await server.start()
    played = [make(server.port) for make in envoys]
    running = [asyncio.create_task(each.run()) for each in played]
    await asyncio.wait_for(all_connected(server, len(played)), 10.0)
    try:
        yield server, played
    finally:
        for task in running:
            task.cancel()
        for each in played:
            await each.close()
        await server.close()


def with_server(work: Callable[[XdsServer, list[PlayedEnvoy]], Awaitable[None]], *envoys: Callable[[int], PlayedEnvoy]) -> None:
    async def whole() -> None:
        async with serving(*envoys) as (server, played):
            await work(server, played)

    asyncio.run(whole())


def rendered(table: RouteTable) -> RenderInput:
    return RenderInput(CONFIG, table, {}, None)


def test_clusters_come_before_the_routes_to_them_and_go_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("themis_triton.adapters.envoy.xds.server.WARM_S", 0.0)

    async def work(server: XdsServer, played: list[PlayedEnvoy]) -> None:
        await server.publish(rendered(TABLE))
        [envoy] = played
        envoy.seen.clear()
        await server.publish(rendered(replace(TABLE, models={"other": ModelRoute((ONE,))})))
        own, old = ({f"model_{protocol}_{model}" for protocol in ("grpc", "http")} for model in ("other", "detect"))
        changes = [(kind, set(names), set(removed)) for kind, names, removed in envoy.seen if kind in (CLUSTER, ROUTES)]
        assert changes == [(CLUSTER, own, set()), (ROUTES, {"grpc", "http"}, set()), (CLUSTER, set(), old)]
        envoy.seen.clear()
        await server.publish(rendered(replace(TABLE, models={"other": ModelRoute((ONE, TWO))})))
        assert [(kind, set(names)) for kind, names, _ in envoy.seen] == [(ENDPOINTS, own)], "a launch sends endpoints alone"

    with_server(work, lambda port: PlayedEnvoy(port, "edge"))


def test_a_refusal_is_raised_with_its_reason_and_all_go_back_to_what_they_had() -> None:
    def picky(response: Any) -> str | None:
        return "no thanks" if any(b"other" in each.resource.value for each in response.resources) else None

    async def work(server: XdsServer, played: list[PlayedEnvoy]) -> None:
        await server.publish(rendered(TABLE))
        with pytest.raises(ServerError, match=r"Envoy picky refused new routes and keeps its last ones: no thanks"):
            await server.publish(rendered(replace(TABLE, models={**TABLE.models, "other": ModelRoute((ONE,))})))
        await asyncio.wait_for(all_in_step(server), 10.0)
        assert [(each.name, each.refused) for each in server.proxies] == [("picky", None), ("plain", None)]
        for each in played:
            assert (CLUSTER, (), ("model_grpc_other", "model_http_other")) in each.seen

    with_server(work, lambda port: PlayedEnvoy(port, "picky", picky), lambda port: PlayedEnvoy(port, "plain"))


def test_one_without_a_name_or_addresses_is_told_what_it_lacks() -> None:
    async def work(server: XdsServer, _played: list[PlayedEnvoy]) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources", Request.SerializeToString, Response.FromString)
            request = asked(CLUSTER)
            request.node.id = "edge"
            with pytest.raises(grpc.aio.AioRpcError, match="Envoy edge has no grpc_listen and no http_listen in its node's metadata"):
                async for _ in call(iter([request])):
                    pass

    with_server(work)


# Statistics and limits of several.


class PlayedStats:
    def __init__(self, *counts: float) -> None:
        self._counts, self.closed = list(counts), False

    async def read_routes(self) -> Routes:
        count = self._counts.pop(0)
        return (RouteReading("detect", 0.0, count, 1.0, 0.0, LatencyHistogram((10.0,), (count,))),), None

    async def count_arrivals(self) -> float | None:
        return self._counts[0]

    async def close(self) -> None:
        self.closed = True


def test_requests_of_all_envoys_add_up_and_none_is_invented_when_one_comes_restarts_or_leaves() -> None:
    remote: Any = PlayedStats(1000.0, 1007.0, 3.0, 5.0)
    own: Any = PlayedStats(10.0, 20.0, 30.0, 40.0, 41.0)
    nodes = [NODE._replace(stats=Address("127.0.0.2", 1))]

    async def whole() -> list[tuple[float, float, float]]:
        stats, seen = SummedStats(own, lambda: nodes, lambda _address: remote), []
        for _ in range(3):
            ((reading,), _error) = await stats.read_routes()
            seen.append((reading.arrivals, reading.in_flight, reading.latency.counts[0]))
        assert await stats.count_arrivals() == 40.0 + 10.0 + 2.0
        nodes.clear()
        ((reading,), _error) = await stats.read_routes()
        return [*seen, (reading.arrivals, reading.in_flight, reading.latency.counts[0])]

    assert asyncio.run(whole()) == [(10.0, 2.0, 10.0), (27.0, 2.0, 27.0), (40.0, 2.0, 40.0), (50.0, 1.0, 50.0)]
    assert remote.closed


def counted(**arrivals: float) -> ArrivalShares:
    """Requests of five seconds by Envoy, which go on for long; `own` is that of the files."""
    shares = ArrivalShares()
    for step in range(2000):
        for name, number in arrivals.items():
            shares.add(OWN if name == "own" else name, "detect", number * 0.02 / 5.0, 1000.0 + 0.02 * step)
    return shares


@pytest.mark.parametrize(
    ("arrivals", "limit_rps", "parts"),
    [
        ({}, 60.0, {OWN: 1 / 3, "a": 1 / 3, "b": 1 / 3}),
        ({"own": 9, "a": 0, "b": 9}, 1.0, {OWN: 1 / 3, "a": 1 / 3, "b": 1 / 3}),  # too few to tell
        ({"own": 0, "a": 600, "b": 0}, 60.0, {OWN: 1 / 30, "a": 1.0, "b": 1 / 30}),  # overload at one: it gets all
        ({"own": 300, "a": 200, "b": 100}, 60.0, {OWN: 1 / 2, "a": 1 / 3, "b": 1 / 6}),
        ({"own": 0, "a": 150, "b": 0}, 60.0, {OWN: 11 / 60, "a": 2 / 3, "b": 11 / 60}),  # half of the limit is spare
        ({"own": 0, "a": 600}, 60.0, {OWN: 1 / 30, "a": 2 / 3, "b": 1 / 3}),  # b does not say
    ],
)
def test_each_envoy_gets_its_part_of_a_limit_by_its_requests(arrivals: dict[str, float], limit_rps: float, parts: dict[str, float]) -> None:
    assert counted(**arrivals).split("detect", limit_rps, (OWN, "a", "b")) == pytest.approx(parts, rel=0.02)


def test_a_part_is_of_the_rate_and_of_the_burst_and_a_restart_reads_the_whole() -> None:
    limit = RouteLimit(30.0, 8, reason="too much")
    table = with_shares(RouteTable({"detect": ModelRoute((ONE,), limit=limit), "other": ModelRoute((ONE,))}, (ONE,)), {"detect": 0.5}, 1.0)
    grpc_routes, _ = route_configurations(CONFIG, table)
    bucket = json.dumps(grpc_routes)
    assert '"max_tokens": 4, "tokens_per_fill": 1500' in bucket
    assert written_limits(grpc_routes) == {"detect": limit}


def test_requests_that_are_long_ago_count_no_more_and_small_changes_are_not_sent() -> None:
    shares = counted(own=600, a=0)
    shares.add("a", "detect", 600.0, 1055.0)
    assert shares.split("detect", 60.0, (OWN, "a"))["a"] > 0.9
    assert steady({"a": 0.5, "b": 0.5}, {"a": 0.55, "b": 0.45})
    assert not steady({"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.4})
    assert shares.tolerance("detect", (OWN, "a")) == STEADY
    shares.add("a", "detect", 10.0, 1055.0, refused=2.0)
    assert shares.tolerance("detect", (OWN, "a")) == STEADY_REFUSING
    assert not steady({"a": 0.5, "b": 0.5}, {"a": 0.55, "b": 0.45}, STEADY_REFUSING)
    assert not steady({"a": 1.0}, {"a": 0.95, "b": 0.05})


# Settings.


def test_other_machines_need_a_certificate_for_routes_and_a_bootstrap_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "themis.yaml"
    written = yaml.safe_load(starter())

    def with_xds(**xds: object) -> Path:
        file.write_text(yaml.safe_dump({**written, "envoy": {"xds": xds}}))
        return file

    with pytest.raises(SettingsError, match=r"lets other machines get routes, and keys of TLS, without a certificate"):
        load_settings(with_xds(listen="0.0.0.0:9190"))
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:9001 conflicts with envoy\.xds\.listen"):
        load_settings(with_xds(listen="127.0.0.1:9001"))
    for name in ("certificate", "key", "ca"):
        (tmp_path / f"{name}.pem").touch()
    with_xds(listen="0.0.0.0:9190", tls={"certificate": "certificate.pem", "key": "key.pem", "client_ca": "ca.pem"})
    with pytest.raises(SettingsError, match=r"--server: missing, and 0\.0\.0\.0:9190 is no address of one machine"):
        envoy_bootstrap_command(file, EnvoyFlags("edge-1"), TlsFlags())
    with pytest.raises(SettingsError, match="--ca: missing"):
        envoy_bootstrap_command(file, EnvoyFlags("edge-1", servers=("themis.example.net:9190",)), TlsFlags())
    flags = EnvoyFlags("edge-1", "west", ("themis.example.net:9190",), "10.0.0.7:9001", stats="10.0.0.7:9902", admin="/run/envoy.sock")
    assert envoy_bootstrap_command(file, flags, TlsFlags(tmp_path / "ca.pem", tmp_path / "certificate.pem", tmp_path / "key.pem")) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["node"]["metadata"] == {"grpc_listen": "10.0.0.7:9001", "http_listen": "127.0.0.1:9000", "stats": "tls://10.0.0.7:9902"}
    assert (made["node"]["id"], made["node"]["locality"]) == ("edge-1", {"zone": "west"})
    upstream = made["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]
    assert upstream["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "themis.example.net"}}
    ]
    several = replace(flags, servers=("10.0.0.1:9190", "10.0.0.2:9190"))
    with pytest.raises(SettingsError, match="--server-name: missing with several --server and TLS"):
        envoy_bootstrap_command(file, several, TlsFlags(tmp_path / "ca.pem"))
    assert envoy_bootstrap_command(file, several, TlsFlags(tmp_path / "ca.pem", server_name="themis")) == 0
    (locality,) = json.loads(capsys.readouterr().out)["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    hosts = [each["endpoint"]["address"]["socket_address"]["address"] for each in locality["lb_endpoints"]]
    assert hosts == ["10.0.0.1", "10.0.0.2"]
