"""Envoy's files as text: what is routed where, what is refused, and in which order files change."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from themis_triton.adapters.envoy.clusters import WATCHED_MODELS
from themis_triton.adapters.envoy.file_steps import expected_versions, steps
from themis_triton.adapters.envoy.grpc_listener import SERVICE, descriptor_set
from themis_triton.adapters.envoy.limits import written_limits
from themis_triton.adapters.envoy.names import Protocol, any_cluster, endpoints_file, index_cluster, model_cluster, unlisted_cluster
from themis_triton.adapters.envoy.render import (
    BOOTSTRAP,
    CLUSTERS,
    LISTENERS,
    node_id,
    render,
    resources_by_file,
    static_bootstrap,
    version_of,
)
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.routes import Endpoint, ModelRoute, RouteLimit, RouteTable

CONFIG = EnvoyConfig(Address("127.0.0.1", 8001), Address("127.0.0.1", 8000), Address("127.0.0.1", 9901), Path("/state/envoy"))
ONE = Endpoint("one", Address("127.0.0.1", 1001), Address("127.0.0.1", 1000))
TWO = Endpoint("two", Address("127.0.0.1", 2001), Address("::1", 2000))
TABLE = RouteTable({"detect": ModelRoute((ONE, TWO)), "classify": ModelRoute((ONE,)), "idle": ModelRoute()}, (ONE, TWO))

LIMIT = "envoy.filters.http.local_ratelimit"
GRPC_RDS, HTTP_RDS = "rds/grpc.json", "rds/http.json"


def resources(files: dict[str, str], name: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(files[name])["resources"]
    return result


def test_a_route_goes_only_to_servers_that_it_does_not_exclude() -> None:
    excluded = RouteTable({**TABLE.models, "detect": ModelRoute((ONE, TWO), excluded=frozenset({"two"}))}, TABLE.any)
    without = RouteTable({**TABLE.models, "detect": ModelRoute((ONE,))}, TABLE.any)
    assert render(CONFIG, excluded) == render(CONFIG, without)


def test_what_cannot_be_rendered_yet_is_refused_and_not_dropped() -> None:
    with pytest.raises(ServerError, match="detect"):
        render(CONFIG, RouteTable({"detect": ModelRoute((ONE,), affinity_header="session")}, (ONE,)))


@pytest.mark.parametrize(
    ("rest_fraction", "grpc", "rest"),
    [(0.0, (8, 2550), (1, 255)), (1.0, (1, 255), (8, 2550)), (0.5, (4, 1275), (4, 1275))],
)
def test_a_limit_is_split_by_protocol_and_read_back_as_it_was_written(
    rest_fraction: float, grpc: tuple[int, int], rest: tuple[int, int]
) -> None:
    limit = RouteLimit(25.5, 8, rest_fraction, "Themis: too much", class_header="x-priority", classes=("high", "normal"))
    files = render(CONFIG, replace(TABLE, models={**TABLE.models, "detect": ModelRoute((ONE,), limit=limit)}))
    for protocol, expected in ((Protocol.GRPC, grpc), (Protocol.HTTP, rest)):
        [configuration] = resources(files, f"rds/{protocol}.json")
        limits = [r["typed_per_filter_config"].get(LIMIT) for h in configuration["virtual_hosts"] for r in h["routes"] if "metadata" in r]
        assert [(each["token_bucket"]["max_tokens"], each["token_bucket"]["tokens_per_fill"]) for each in limits] == [expected]
        assert written_limits(configuration) == {"detect": limit}


def routes(protocol: Protocol, table: RouteTable = TABLE) -> list[dict[str, Any]]:
    [configuration] = resources(render(CONFIG, table), f"rds/{protocol}.json")
    [host] = configuration["virtual_hosts"]
    result: list[dict[str, Any]] = host["routes"]
    return result


def http_answer(path: str, table: RouteTable = TABLE) -> str | int:
    """The cluster, or the status of the direct response, that Envoy's first matching route gives the path."""
    for route in routes(Protocol.HTTP, table):
        match = route["match"]
        if "prefix" in match or re.fullmatch(match["safe_regex"]["regex"], path):
            return answer_of(route)
    raise AssertionError("no route is left without an answer")


def grpc_answer(method: str, names: dict[str, str] | None = None, table: RouteTable = TABLE) -> str | int:
    for route in routes(Protocol.GRPC, table):
        match = route["match"]
        path_fits = method == match["path"] if "path" in match else method.startswith(match["prefix"])
        if path_fits and all(named(matcher, names or {}) for matcher in match.get("dynamic_metadata", ())):
            return answer_of(route)
    raise AssertionError("no route is left without an answer")


def named(matcher: dict[str, Any], names: dict[str, str]) -> bool:
    expected = matcher["value"]["list_match"]["one_of"]["string_match"]["exact"]
    return names.get(matcher["path"][0]["key"]) == str(expected)


def answer_of(route: dict[str, Any]) -> str | int:
    if "direct_response" in route:
        return int(route["direct_response"]["status"])
    return str(route["route"]["cluster"])


def test_rendering_is_pure_and_names_every_file() -> None:
    files = render(CONFIG, TABLE)
    assert files == render(CONFIG, RouteTable(dict(reversed(TABLE.models.items())), TABLE.any))
    clusters = [each["name"] for each in resources(files, CLUSTERS)]
    assert len(set(clusters)) == 2 * (len(TABLE.models) + 3)
    assert set(files) == {BOOTSTRAP, LISTENERS, CLUSTERS, GRPC_RDS, HTTP_RDS, *map(endpoints_file, clusters)}


def test_endpoints_are_grouped_by_the_zones_of_their_machines_and_keep_their_weights() -> None:
    near, far = replace(ONE, zone="west-1"), replace(TWO, zone="east-1")
    table = RouteTable({"detect": ModelRoute((near, far, replace(ONE, server="three")), weights={"two": 3})}, ())
    [assignment] = resources(render(CONFIG, table), endpoints_file(model_cluster(Protocol.HTTP, "detect")))
    shown = [
        (group.get("locality"), [host["load_balancing_weight"] for host in group["lb_endpoints"]]) for group in assignment["endpoints"]
    ]
    assert shown == [(None, [1]), ({"zone": "east-1"}, [9]), ({"zone": "west-1"}, [1])]


def test_models_that_no_index_lists_go_where_the_table_says() -> None:
    files, same = render(CONFIG, replace(TABLE, unlisted=(TWO,))), render(CONFIG, TABLE)

    def members(of: dict[str, str], cluster: str) -> object:
        return resources(of, endpoints_file(cluster))[0]["endpoints"]

    for protocol in Protocol:
        assert members(files, unlisted_cluster(protocol)) != members(files, any_cluster(protocol))
        assert members(same, unlisted_cluster(protocol)) == members(same, any_cluster(protocol))


def test_the_repository_index_is_answered_where_a_server_lists_it_without_a_key_and_nothing_else_of_the_repository_is() -> None:
    table = replace(TABLE, index=(ONE,))
    assert http_answer("/v2/repository/index", table) == index_cluster(Protocol.HTTP)
    assert grpc_answer(f"/{SERVICE}/RepositoryIndex", {}, table) == index_cluster(Protocol.GRPC)
    for path in ("/v2/repository/models/index/load", "/v2/repository/index/", "/v2/repository/models/a/unload", "/v2/repository"):
        assert http_answer(path, table) == 403
    for method in ("RepositoryModelLoad", "RepositoryModelUnload", "RepositoryIndexes"):
        assert grpc_answer(f"/{SERVICE}/{method}", {}, table) == 403


@pytest.mark.parametrize(("models", "interval"), [(1, "1s"), (7, "1s"), (8, "2s"), (100, "16s"), (1000, "128s")])
def test_health_checks_of_many_models_stay_few(models: int, interval: str) -> None:
    table = RouteTable({f"m{i}": ModelRoute((ONE,)) for i in range(models)}, (ONE,))
    clusters = resources(render(CONFIG, table), CLUSTERS)
    assert {each["health_checks"][0]["interval"] for each in clusters} == {interval}
    assert {each["health_checks"][0]["no_traffic_interval"] for each in clusters} == {interval}
    assert {each["health_checks"][0]["unhealthy_interval"] for each in clusters} == {f"{float(interval[:-1]) / 2:g}s"}


def test_endpoints_have_weights_only_where_these_differ_and_they_are_squares() -> None:
    def weights(of: dict[str, int]) -> list[int | None]:
        table = RouteTable({"detect": ModelRoute((ONE, TWO), weights=of)}, (ONE, TWO))
        [assignment] = resources(render(CONFIG, table), endpoints_file(model_cluster(Protocol.GRPC, "detect")))
        return [each.get("load_balancing_weight") for each in assignment["endpoints"][0]["lb_endpoints"]]

    assert weights({}) == weights({ONE.server: 3, TWO.server: 3}) == [None, None]
    assert weights({ONE.server: 3}) == [9, 1]


def test_a_version_follows_from_content() -> None:
    before, after = render(CONFIG, TABLE), render(CONFIG, RouteTable({**TABLE.models, "classify": ModelRoute((TWO,))}, TABLE.any))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {endpoints_file(model_cluster(protocol, "classify")) for protocol in Protocol}
    for name in changed:
        assert version_of(before[name]) != version_of(after[name])


def test_endpoints_are_those_of_the_protocol_and_health_is_asked_over_http() -> None:
    files = render(CONFIG, TABLE)
    [grpc] = resources(files, endpoints_file(model_cluster(Protocol.GRPC, "detect")))
    [http] = resources(files, endpoints_file(model_cluster(Protocol.HTTP, "detect")))
    one, two = grpc["endpoints"][0]["lb_endpoints"]
    assert one["endpoint"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1001}
    assert two["endpoint"]["health_check_config"]["address"]["socket_address"] == {"address": "::1", "port_value": 2000}
    assert http["endpoints"][0]["lb_endpoints"][1]["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 2000}
    [idle] = resources(files, endpoints_file(model_cluster(Protocol.GRPC, "idle")))
    assert idle["endpoints"] == [{"lb_endpoints": []}]


@pytest.mark.parametrize("address", [Address("localhost", 8001), Address("127.0.0.1", 70000), Address("", 8001)])
def test_an_address_that_envoy_cannot_take_is_named(address: Address) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"'{address}'")):
        render(replace(CONFIG, grpc_listen=address), TABLE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/models/detect/infer", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detect/versions/1/generate_stream", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detect", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detect/versions/2", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detect/ready", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detect/versions/2/stats", model_cluster(Protocol.HTTP, "detect")),
        ("/v2/models/detector/infer", unlisted_cluster(Protocol.HTTP)),
        ("/v2/models/%64etect/infer", unlisted_cluster(Protocol.HTTP)),
        ("/v2/models/stats", any_cluster(Protocol.HTTP)),
        ("/v2/health/live", any_cluster(Protocol.HTTP)),
        ("/v2", any_cluster(Protocol.HTTP)),
        ("/v2/repository/index", 403),
        ("/v2/repository", 403),
        ("/v2/repository/models/detect/load", 403),
        ("/v2/systemsharedmemory/region/a/register", 403),
        ("/v2/cudasharedmemory/status", 403),
        ("/v2/trace/setting", 403),
        ("/v2/models/detect/trace/setting", 403),
        ("/v2/models/detect/versions/1/trace/setting", 403),
        ("/v2/logging", 403),
        ("/v2/models/a%2Fb/infer", 400),
        ("/v2/models/a%5Cb/infer", 400),
        ("/v2/models/detect/infer/", 404),
        ("/v2/models/detect/versions/x/infer", 404),
        ("/v2/models/a/b/infer", 404),
        ("/v2/models//infer", 404),
        ("//v2/health/live", 404),
        ("/v2/models/index", unlisted_cluster(Protocol.HTTP)),
        ("/v2/", 404),
        ("/", 404),
        ("/metrics", 404),
    ],
)
def test_rest_paths(path: str, expected: str | int) -> None:
    assert http_answer(path) == expected


@pytest.mark.parametrize("model", ["a.b", "a+b", "(x|y)", "näme", "a[0]", "^$", "x*", "a~b", "a b"])
def test_a_name_is_no_pattern(model: str) -> None:
    table = RouteTable({model: ModelRoute((ONE,))}, (ONE,))
    assert http_answer(f"/v2/models/{model}/infer", table) == model_cluster(Protocol.HTTP, model)
    for other in ("aXb", "aab", "x", "y", "a0", "", "xx"):
        assert http_answer(f"/v2/models/{other}/infer", table) in {unlisted_cluster(Protocol.HTTP), 404}


@pytest.mark.parametrize(
    ("method", "names", "expected"),
    [
        ("ModelInfer", {"model_name": "detect"}, model_cluster(Protocol.GRPC, "detect")),
        ("ModelStreamInfer", {"model_name": "classify"}, model_cluster(Protocol.GRPC, "classify")),
        ("ModelReady", {"name": "idle"}, model_cluster(Protocol.GRPC, "idle")),
        ("ModelStatistics", {"name": "detect"}, model_cluster(Protocol.GRPC, "detect")),
        ("ModelInfer", {"model_name": "unknown"}, unlisted_cluster(Protocol.GRPC)),
        ("ModelInfer", {}, unlisted_cluster(Protocol.GRPC)),
        ("ServerReady", {}, any_cluster(Protocol.GRPC)),
        ("RepositoryModelLoad", {"model_name": "detect"}, 403),
        ("RepositoryIndex", {}, 403),
        ("SystemSharedMemoryRegister", {}, 403),
        ("CudaSharedMemoryStatus", {}, 403),
        ("TraceSetting", {}, 403),
        ("LogSettings", {}, 403),
        ("ModelSomethingNew", {}, 404),
        ("ModelInfer/", {}, 404),
    ],
)
def test_grpc_methods(method: str, names: dict[str, str], expected: str | int) -> None:
    assert grpc_answer(f"/{SERVICE}/{method}", names) == expected


def test_every_method_of_the_service_is_either_forwarded_or_refused() -> None:
    service = described().FindServiceByName(SERVICE)
    answers = {method.name: grpc_answer(f"/{SERVICE}/{method.name}") for method in service.methods}
    assert len(answers) >= 20
    assert set(answers.values()) == {any_cluster(Protocol.GRPC), unlisted_cluster(Protocol.GRPC), 403}
    assert {name for name, answer in answers.items() if answer != 403} == {
        *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
        *("ModelInfer", "ModelStreamInfer"),
    }


def described() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptor_set()).file:
        pool.Add(file)
    return pool


def test_the_descriptor_set_has_its_dependencies_first() -> None:
    seen: set[str] = set()
    for file in FileDescriptorSet.FromString(descriptor_set()).file:
        assert set(file.dependency) <= seen
        seen.add(file.name)
    assert described().FindMessageTypeByName("inference.ModelInferRequest").fields_by_name["model_name"].number == 1


def test_only_known_models_are_asked_again_where_triton_says_that_another_server_may_answer() -> None:
    for route in routes(Protocol.GRPC):
        if "route" in route:
            known = route["route"]["cluster"] not in {any_cluster(Protocol.GRPC), unlisted_cluster(Protocol.GRPC)}
            policy = route["route"]["retry_policy"]
            conditions = policy["retry_on"].split(",")
            assert "unavailable" not in conditions
            assert ("retriable-headers" in conditions) is known
            if known:
                [header] = policy["retriable_headers"]
                pattern = header["string_match"]["safe_regex"]["regex"]
                assert re.fullmatch(pattern, "Request for unknown model: 'a' has no available versions")
                assert not re.fullmatch(pattern, "[request id: 7] Exceeds maximum queue size")
                assert not re.fullmatch(pattern, "[request id: 7] Request timeout expired")


def test_nothing_is_cut_off_by_a_route() -> None:
    for protocol in Protocol:
        assert {route["route"]["timeout"] for route in routes(protocol) if "route" in route} == {"0s"}


def test_health_of_a_model_whose_name_fits_no_path_is_the_servers_life() -> None:
    result = resources(render(CONFIG, RouteTable({"a b": ModelRoute((ONE,)), "plain": ModelRoute((ONE,))}, (ONE,))), CLUSTERS)
    paths = {each["name"]: each["health_checks"][0]["http_health_check"]["path"] for each in result}
    assert paths[model_cluster(Protocol.GRPC, "plain")] == "/v2/models/plain/ready"
    assert paths[model_cluster(Protocol.GRPC, "a b")] == paths[any_cluster(Protocol.HTTP)] == "/v2/health/live"


def test_the_bootstrap_tells_whose_it_is_and_does_not_change_with_routes() -> None:
    bootstrap = json.loads(render(CONFIG, TABLE)[BOOTSTRAP])
    assert bootstrap["node"]["id"] == node_id(CONFIG.directory)
    assert render(CONFIG, TABLE)[BOOTSTRAP] == render(CONFIG, RouteTable({}, ()))[BOOTSTRAP]


def test_the_static_bootstrap_holds_everything_and_reads_no_other_listener() -> None:
    static = json.loads(static_bootstrap(render(CONFIG, TABLE)))
    assert "dynamic_resources" not in static
    managers = [each["filter_chains"][0]["filters"][0]["typed_config"] for each in static["static_resources"]["listeners"]]
    assert [manager["route_config"]["name"] for manager in managers] == ["grpc", "http"]
    assert len(static["static_resources"]["clusters"]) == 2 * (len(TABLE.models) + 3)


def test_no_step_is_needed_when_nothing_differs() -> None:
    files = render(CONFIG, TABLE)
    assert steps(files, files) == []


def test_a_fresh_directory_gets_endpoints_before_clusters_before_routes() -> None:
    files = render(CONFIG, TABLE)
    [first, second, third] = steps(files, {})
    assert list(first) == [BOOTSTRAP]
    assert list(second)[-1] == CLUSTERS
    assert set(third) == {LISTENERS, GRPC_RDS, HTTP_RDS}
    assert {**first, **second, **third} == files


def test_moved_endpoints_are_one_step() -> None:
    before, after = render(CONFIG, TABLE), render(CONFIG, RouteTable({**TABLE.models, "idle": ModelRoute((TWO,))}, TABLE.any))
    [step] = steps(after, before)
    assert set(step) == {endpoints_file(model_cluster(protocol, "idle")) for protocol in Protocol}
    assert set(expected_versions(step)) == {f"cluster.{model_cluster(protocol, 'idle')}" for protocol in Protocol}


def crowded(members: tuple[Endpoint, ...]) -> RouteTable:
    """One model more than have endpoint files of their own; its name is the first in the alphabet and the last in the table."""
    return RouteTable({f"m{i}": ModelRoute((ONE,)) for i in range(WATCHED_MODELS)} | {"a": ModelRoute(members)}, (ONE, TWO))


def test_clusters_beyond_the_watched_ones_have_their_endpoints_inside() -> None:
    files = render(CONFIG, crowded((ONE, TWO)))
    kinds = {each["name"]: each["type"] for each in resources(files, CLUSTERS)}
    inside = {model_cluster(protocol, "a") for protocol in Protocol}
    assert {name for name, kind in kinds.items() if kind == "STATIC"} == inside
    assert {name for name in files if name.startswith("eds/")} == {endpoints_file(name) for name in kinds.keys() - inside}
    [grpc] = [each["load_assignment"] for each in resources(files, CLUSTERS) if each["name"] == model_cluster(Protocol.GRPC, "a")]
    [one, _] = grpc["endpoints"][0]["lb_endpoints"]
    assert one["endpoint"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1001}


def test_moved_endpoints_inside_a_cluster_are_one_step_with_the_clusters() -> None:
    before, after = render(CONFIG, crowded((ONE,))), render(CONFIG, crowded((TWO,)))
    assert steps(after, before) == [{CLUSTERS: after[CLUSTERS]}]


def test_a_cluster_gets_its_endpoint_file_together_with_its_new_kind() -> None:
    after = render(CONFIG, RouteTable({"a": ModelRoute((ONE,))}, (ONE, TWO)))
    added = steps(after, render(CONFIG, crowded((ONE,))))[0]
    assert [*added] == [*(endpoints_file(model_cluster(protocol, "a")) for protocol in Protocol), CLUSTERS]


def test_clusters_come_before_their_routes_and_go_after_them() -> None:
    before = render(CONFIG, TABLE)
    after = render(CONFIG, RouteTable({"detect": ModelRoute((ONE, TWO)), "new": ModelRoute((ONE,))}, TABLE.any))
    added, front, trimmed = steps(after, before)
    kept = {each["name"] for each in resources(added, CLUSTERS)}
    assert {model_cluster(Protocol.GRPC, name) for name in ("detect", "new", "classify", "idle")} <= kept
    assert endpoints_file(model_cluster(Protocol.HTTP, "new")) in added
    assert set(front) == {GRPC_RDS, HTTP_RDS}
    assert trimmed == {CLUSTERS: after[CLUSTERS]}


def test_a_server_behind_a_proxy_with_tls_has_it_for_requests_and_health_checks_of_rest() -> None:
    proxy = Address("10.0.0.1", 443, tls=True, ca="/ca.pem")
    table = RouteTable({"detect": ModelRoute((replace(ONE, http_address=proxy), TWO))}, ())
    files = resources_by_file(CONFIG, table, {"one http": "v1"}, None)
    clusters = {each["name"]: each for each in files[CLUSTERS]}
    rest, grpc = (clusters[model_cluster(protocol, "detect")] for protocol in (Protocol.HTTP, Protocol.GRPC))
    (socket,) = rest["transport_socket_matches"]
    assert (socket["name"], socket["match"]) == ("one v1", {"server": "one"})
    common = socket["transport_socket"]["typed_config"]["common_tls_context"]
    assert (common["alpn_protocols"], common["validation_context"]["trusted_ca"]) == (["http/1.1"], {"filename": "/ca.pem"})
    assert "transport_socket_match_criteria" not in rest["health_checks"][0]
    assert "transport_socket_matches" not in grpc
    for protocol, secure in ((Protocol.HTTP, {"metadata"}), (Protocol.GRPC, set[str]())):
        (assignment,) = files[endpoints_file(model_cluster(protocol, "detect"))]
        one, two = assignment["endpoints"][0]["lb_endpoints"]
        assert (one.keys() & {"metadata"}, two.keys() & {"metadata"}) == (secure, set())
        if protocol is Protocol.GRPC:
            assert one["endpoint"]["health_check_config"]["disable_active_health_check"]
            assert "disable_active_health_check" not in two["endpoint"]["health_check_config"]


def test_a_server_with_tls_has_a_transport_socket_of_its_own_and_plain_health_checks() -> None:
    named = Address("10.0.0.1", 1001, tls=True, server_name="triton.example", ca="/ca.pem", certificate="/own.pem", key="/key.pem")
    secure, by_ip = replace(ONE, grpc_address=named), replace(TWO, grpc_address=Address("::1", 2001, tls=True, ca="/ca.pem"))
    files = render(CONFIG, RouteTable({"detect": ModelRoute((secure, by_ip))}, (secure, by_ip)))
    clusters = {each["name"]: each for each in resources(files, CLUSTERS)}
    sockets = clusters[model_cluster(Protocol.GRPC, "detect")]["transport_socket_matches"]
    contexts = {each["match"]["server"]: each["transport_socket"]["typed_config"] for each in sockets}
    assert (contexts["one"]["sni"], "sni" in contexts["two"]) == ("triton.example", False)
    common = contexts["one"]["common_tls_context"]
    assert common["tls_certificates"] == [{"certificate_chain": {"filename": "/own.pem"}, "private_key": {"filename": "/key.pem"}}]
    sans = [context["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"] for context in contexts.values()]
    expected = (("DNS", "triton.example"), ("IP_ADDRESS", "::1"))
    assert sans == [[{"san_type": kind, "matcher": {"exact": name}}] for kind, name in expected]
    assert "transport_socket_matches" not in clusters[model_cluster(Protocol.HTTP, "detect")]
    [assignment] = resources(files, endpoints_file(model_cluster(Protocol.GRPC, "detect")))
    metadata = [each["metadata"]["filter_metadata"] for each in assignment["endpoints"][0]["lb_endpoints"]]
    assert metadata == [{"envoy.transport_socket_match": {"server": name}} for name in ("one", "two")]
    matched = {key for each in sockets for key in each["match"]}
    assert not matched & set(clusters[model_cluster(Protocol.GRPC, "detect")]["health_checks"][0]["transport_socket_match_criteria"])
