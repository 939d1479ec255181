"""Stock Triton clients through a real Envoy in front of real Triton servers: the same answers as from the server itself."""

from __future__ import annotations

import asyncio
import http.client
import queue
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import REPOSITORY, Launch
from tests.e2e.envoy_setup import Gateway, endpoint, outcome, running_envoy, table_of, tensors, values
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.core.address import Address
from themis_triton.core.config import LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.routes import ModelRoute, RouteTable

pytestmark = pytest.mark.e2e

EMULATED = sorted(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
ODD = "odd+name.v1~x"
UNKNOWN = "no-such-model"
IDLE = "without-server"


@pytest.fixture(scope="module")
def everything(launch: Launch) -> Iterator[Server]:
    """A server with every emulated model."""
    with launch("everything", {name: ModelState(1, 8) for name in EMULATED}) as server:
        yield server


@pytest.fixture(scope="module")
def odd(launch_config: LocalLaunchConfig, state_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model, whose name has characters that mean something in paths, patterns or statistics."""
    repository = tmp_path_factory.mktemp("odd")
    shutil.copytree(REPOSITORY / "video-detector", repository / ODD)
    config = repository / ODD / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('"video-detector"', f'"{ODD}"'), encoding="utf-8")
    servers = LocalLauncher(replace(launch_config, model_repository=repository, stop_timeout_s=2.0), state_directory)
    server = asyncio.run(servers.launch("odd", "cpu-b", {ODD: ModelState(1, 8)}))
    try:
        yield asyncio.run(servers.wait_ready(server))
    finally:
        asyncio.run(servers.stop(server))


@pytest.fixture(scope="module")
def gateway(everything: Server, odd: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An Envoy that knows every model, one of them without a server. What names no model goes to the server with everything."""
    table = table_of(everything)
    with running_envoy(
        tmp_path_factory.mktemp("gateway"), RouteTable({**table.models, ODD: ModelRoute((endpoint(odd),)), IDLE: ModelRoute()}, table.any)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def grpc_pair(gateway: Gateway, everything: Server) -> Iterator[tuple[Any, Any]]:
    """The same client twice: through Envoy, and directly at the server."""
    with (
        triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as proxied,
        triton_grpc.InferenceServerClient(everything.grpc_address.authority) as direct,
    ):
        yield proxied, direct


@pytest.fixture(scope="module")
def http_pair(gateway: Gateway, everything: Server) -> Iterator[tuple[Any, Any]]:
    proxied = triton_http.InferenceServerClient(gateway.config.http_listen.authority, network_timeout=120.0)
    direct = triton_http.InferenceServerClient(everything.http_address.authority, network_timeout=120.0)
    yield proxied, direct
    proxied.close()
    direct.close()


def test_there_are_emulated_models() -> None:
    assert len(EMULATED) >= 7


@pytest.mark.parametrize("model", EMULATED)
def test_grpc_and_http_answer_as_the_server_does(model: str, grpc_pair: Any, http_pair: Any) -> None:
    x = values(5)
    answers = [client.infer(model, tensors(triton_grpc, x)).as_numpy("OUTPUT") for client in grpc_pair]
    answers += [client.infer(model, tensors(triton_http, x)).as_numpy("OUTPUT") for client in http_pair]
    assert answers[1].shape == x.shape
    for answer in answers:
        assert np.array_equal(answer, answers[1])


@pytest.mark.parametrize("model", EMULATED)
def test_aio_answers_as_the_server_does(model: str, gateway: Gateway, everything: Server) -> None:
    async def ask(address: Address) -> Any:
        async with triton_aio.InferenceServerClient(address.authority) as client:
            return (await client.infer(model, tensors(triton_grpc, values(5)))).as_numpy("OUTPUT")

    assert np.array_equal(asyncio.run(ask(gateway.config.grpc_listen)), asyncio.run(ask(everything.grpc_address)))


def stream_answers(address: Address, models: list[str]) -> list[Any]:
    """Send one request to each model on one stream, the next when the last is answered."""
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(address.authority) as client:
        client.start_stream(lambda result, error: answers.put(error if result is None else result.as_numpy("OUTPUT")))
        outcome_found = []
        for number, model in enumerate(models):
            client.async_stream_infer(model, tensors(triton_grpc, values(3, seed=number)))
            outcome_found.append(answers.get(timeout=20.0))
        client.stop_stream()
    return outcome_found


@pytest.mark.parametrize("model", EMULATED)
def test_a_stream_answers_as_the_server_does(model: str, gateway: Gateway, everything: Server) -> None:
    proxied, direct = (stream_answers(address, [model] * 3) for address in (gateway.config.grpc_listen, everything.grpc_address))
    assert len(direct) == 3
    assert all(np.array_equal(one, other) for one, other in zip(proxied, direct, strict=True))


def test_a_stream_stays_with_the_servers_of_its_first_message(gateway: Gateway) -> None:
    same_server, other_server = (stream_answers(gateway.config.grpc_listen, ["video-detector", model])[1] for model in (EMULATED[0], ODD))
    assert isinstance(same_server, np.ndarray)
    assert isinstance(other_server, InferenceServerException)
    assert other_server.message() == f"Request for unknown model: '{ODD}' is not found"


@pytest.mark.parametrize("model", ["video-detector", UNKNOWN, ""])
@pytest.mark.parametrize("question", ["is_model_ready", "get_model_metadata", "get_model_config"])
def test_grpc_information_is_what_the_server_says(question: str, model: str, grpc_pair: Any) -> None:
    proxied, direct = (outcome(getattr(client, question), model) for client in grpc_pair)
    assert proxied == direct


@pytest.mark.parametrize("question", ["is_model_ready", "get_model_metadata", "get_model_config"])
def test_http_information_is_what_the_server_says(question: str, http_pair: Any) -> None:
    for model in ("video-detector", UNKNOWN):
        proxied, direct = (outcome(getattr(client, question), model) for client in http_pair)
        assert proxied == direct


def test_statistics_and_server_calls_come_through(grpc_pair: Any, http_pair: Any) -> None:
    for proxied, direct in (grpc_pair, http_pair):
        assert proxied.is_server_live()
        assert proxied.is_server_ready()
        assert proxied.get_server_metadata() == direct.get_server_metadata()
    assert grpc_pair[0].get_inference_statistics("video-detector").model_stats[0].name == "video-detector"
    assert http_pair[0].get_inference_statistics("video-detector")["model_stats"][0]["name"] == "video-detector"
    assert len(http_pair[0].get_inference_statistics()["model_stats"]) == len(EMULATED)


def test_an_unknown_model_gets_the_servers_own_answer(grpc_pair: Any, http_pair: Any) -> None:
    over_grpc = [outcome(client.infer, UNKNOWN, tensors(triton_grpc, values())) for client in grpc_pair]
    over_http = [outcome(client.infer, UNKNOWN, tensors(triton_http, values())) for client in http_pair]
    assert over_grpc[0] == over_grpc[1] == ("StatusCode.NOT_FOUND", f"Request for unknown model: '{UNKNOWN}' is not found")
    assert over_http[0] == over_http[1]
    assert over_http[1][0] == "404"


def test_an_odd_name_reaches_its_server(gateway: Gateway, odd: Server) -> None:
    x = values()
    with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        assert np.array_equal(client.infer(ODD, tensors(triton_grpc, x)).as_numpy("OUTPUT"), x * 2 + 1)
    # The stock HTTP client quotes the name, which Triton does not undo; as it stands it works.
    assert ask(gateway.config.http_listen, "GET", f"/v2/models/{ODD}/ready")[0] == 200
    quoted = "/v2/models/odd%2Bname.v1~x/ready"
    assert ask(gateway.config.http_listen, "GET", quoted) == ask(odd.http_address, "GET", quoted)


def test_a_model_without_a_server_is_unavailable_at_once(gateway: Gateway) -> None:
    message = "Themis: no server is available for this request at the moment"
    with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        outcome_found = outcome(client.infer, IDLE, tensors(triton_grpc, values()), client_timeout=2.0)
    assert outcome_found == ("StatusCode.UNAVAILABLE", message)
    status, body = ask(gateway.config.http_listen, "POST", f"/v2/models/{IDLE}/infer", b"{}")
    assert status == 503
    assert message in body


ADMINISTRATIVE = {
    "load": lambda client: client.load_model("video-detector"),
    "unload": lambda client: client.unload_model("video-detector"),
    "index": lambda client: client.get_model_repository_index(),
    "trace": lambda client: client.get_trace_settings(),
    "trace of a model": lambda client: client.update_trace_settings("video-detector", {"trace_rate": "1"}),
    "log": lambda client: client.update_log_settings({"log_verbose_level": 1}),
    "system shared memory": lambda client: client.register_system_shared_memory("region", "/key", 64),
    "CUDA shared memory": lambda client: client.get_cuda_shared_memory_status(),
}


@pytest.mark.parametrize("call", ADMINISTRATIVE.values(), ids=ADMINISTRATIVE.keys())
def test_administrative_calls_are_refused(call: Any, grpc_pair: Any, http_pair: Any) -> None:
    over_grpc, over_http = (outcome(call, pair[0]) for pair in (grpc_pair, http_pair))
    assert over_grpc[0] == "StatusCode.PERMISSION_DENIED"
    assert over_http[0] == "403"
    for _, message in (over_grpc, over_http):
        assert message.startswith("Themis: administrative calls")


def ask(address: Address, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """One request with the path exactly as it is given."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10.0)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/index?x=/v2/models/video-detector/infer",
        "/v2//repository/index",
        "//v2/repository/index",
        "/v2/./repository/index",
        "/v2/models/../repository/index",
        "/v2/models/x/../../repository/index",
        "/v2/%72epository/index",
        "/v2/repository%2Findex",
        "/v2/models/x%2f..%2f..%2frepository%2findex/ready",
        "/v2/models/..%5c..%5crepository/ready",
        "/v2/repository/models/video-detector/load",
        "/v2/repository/models/video-detector/unload;/infer",
        "/V2/repository/index",
        "http://anything/v2/repository/index",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/video-detector/trace/setting",
        "/v2/models/video-detector/versions/1/trace/setting",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/x/unregister",
        "/metrics",
        "/v2/models/video-detector/infer/",
        "/v2/anything/new",
    ],
)
def test_no_path_reaches_anything_but_inference(path: str, gateway: Gateway) -> None:
    for method in ("GET", "POST"):
        status, body = ask(gateway.config.http_listen, method, path, b"{}" if method == "POST" else None)
        assert status in {400, 403, 404}
        assert body.startswith('{"error":"')


def test_an_unknown_grpc_method_is_not_forwarded(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.config.grpc_listen.authority) as channel:
        # A doubled slash is not even a method's name to Envoy.
        for method, code in (
            ("/inference.GRPCInferenceService/Later", grpc.StatusCode.UNIMPLEMENTED),
            ("/x.Y/Z", grpc.StatusCode.UNIMPLEMENTED),
            ("//inference.GRPCInferenceService/RepositoryIndex", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=5.0)
            assert refused.value.code() is code
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5.0) == b"\x08\x01"


def test_forged_headers_do_not_route(gateway: Gateway) -> None:
    forged = {
        "x-themis-model": ODD,
        "x-envoy-original-path": "/v2/repository/index",
        "x-original-url": "/v2/repository/index",
        "x-rewrite-url": "/v2/repository/index",
        "x-envoy-upstream-alt-stat-name": "model_grpc_odd",
        "x-http-method-override": "GET",
        "x-envoy-retry-on": "5xx",
    }
    x = values()
    with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        # The two models differ in their offset, so an answer tells who gave it.
        classified = client.infer("video-classifier", tensors(triton_grpc, x), headers=forged).as_numpy("OUTPUT")
        plain = client.infer("video-classifier", tensors(triton_grpc, x)).as_numpy("OUTPUT")
    assert np.array_equal(classified, plain)
    assert ask(gateway.config.http_listen, "GET", "/v2/models/video-classifier", headers=forged)[1].startswith('{"name":"video-classifier"')


def test_a_32_mib_tensor_goes_through(grpc_pair: Any, http_pair: Any) -> None:
    x = values(8 * 2**20)
    assert x.nbytes == 32 * 2**20
    for client, module in ((grpc_pair[0], triton_grpc), (http_pair[0], triton_http)):
        assert np.array_equal(client.infer("video-detector", tensors(module, x)).as_numpy("OUTPUT"), x * 2 + 1)


def test_large_tensors_of_several_requests_on_one_connection_go_through(gateway: Gateway) -> None:
    x = values(6 * 2**20)

    async def ask_together() -> list[Any]:
        async with triton_aio.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
            return list(await asyncio.gather(*(client.infer("video-detector", tensors(triton_grpc, x)) for _ in range(4))))

    for answer in asyncio.run(ask_together()):
        assert np.array_equal(answer.as_numpy("OUTPUT"), x * 2 + 1)


def test_a_compressed_request_is_told_what_to_do(gateway: Gateway) -> None:
    x = np.ones((1, 100_000), np.float32)
    with triton_grpc.InferenceServerClient(gateway.config.grpc_listen.authority) as client:
        refused = outcome(client.infer, "video-detector", tensors(triton_grpc, x), compression_algorithm="gzip")
    assert refused[0] == "StatusCode.INVALID_ARGUMENT"
    assert refused[1].endswith("send it without gRPC compression")


def test_a_compressed_rest_request_goes_through(http_pair: Any) -> None:
    x = np.ones((1, 100_000), np.float32)
    answer = http_pair[0].infer(
        "video-detector", tensors(triton_http, x), request_compression_algorithm="gzip", response_compression_algorithm="gzip"
    )
    assert np.array_equal(answer.as_numpy("OUTPUT"), x * 2 + 1)
