"""A model with state between calls, and one that answers with streams: sequences stay whole and streams run to their end."""

from __future__ import annotations

import asyncio
import itertools
import os
import py_compile
import shutil
import signal
import sys
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http
import yaml
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import Clients
from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, Sidecar, Status, launched, traffic
from tests.e2e.test_any_model import sidecar_beside
from tests.e2e.triton_process import REPOSITORY, TritonProcess, running_triton
from themis_triton.adapters.http import HttpClient
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.triton.metrics import fetch_metrics
from themis_triton.commands.settings_commands import init_from_command
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig, Mode
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.settings import load_settings

pytestmark = pytest.mark.e2e
COUNT, CALLER, DRIP, OTHER = "count", "caller", "drip", "other"
CALLS = 6
SURGE_RPS = 60.0
_COUNT = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        time.sleep(0.02)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x, start, who = (pb.get_input_tensor_by_name(request, name).as_numpy().ravel()[0] for name in ("X", "START", "CORRID"))
        if not start and who not in self.sums:
            return pb.InferenceResponse(error=pb.TritonError(f"sequence {who} began elsewhere"))
        self.sums[who] = x if start else self.sums[who] + x
        return pb.InferenceResponse([pb.Tensor("Y", np.array([[self.sums[who]]], np.float32))])
"""
_CALLER = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb.get_input_tensor_by_name(request, "X").as_numpy()
        inner = pb.InferenceRequest(
            model_name="count", requested_output_names=["Y"], inputs=[pb.Tensor("X", x)],
            correlation_id=request.correlation_id(), flags=request.flags(),
        ).exec()
        if inner.has_error():
            return pb.InferenceResponse(error=inner.error())
        return pb.InferenceResponse([pb.Tensor("Y", pb.get_output_tensor_by_name(inner, "Y").as_numpy())])
"""
_DRIP = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for part in range(int(pb.get_input_tensor_by_name(request, "X").as_numpy().ravel()[0])):
                sender.send(pb.InferenceResponse([pb.Tensor("Y", np.full((1, 1), part, np.float32))]))
                time.sleep(0.5)
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_SEQUENCES = """sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 16 }
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] },
    { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
}
"""
_STREAM_CLIENT = """
import queue, sys
import numpy as np
import tritonclient.grpc
results = queue.Queue()
tensor = tritonclient.grpc.InferInput("X", [1, 1], "FP32")
tensor.set_data_from_numpy(np.array([[6.0]], np.float32))
with tritonclient.grpc.InferenceServerClient(sys.argv[1]) as client:
    client.start_stream(lambda result, error: results.put((result, error)))
    client.async_stream_infer("drip", [tensor], enable_empty_final_response=True)
    while True:
        result, error = results.get(timeout=20)
        assert error is None, error
        final = result.get_response().parameters["triton_final_response"].bool_param
        print("end" if final else result.as_numpy("Y").item(), flush=True)
        if final:
            break
"""


def write_model(repository: Path, name: str, code: str, more: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    py_compile.compile(str(repository / name / "1" / "model.py"), doraise=True)  # Else Python writes it after Triton has looked.
    tensor = "data_type: TYPE_FP32 dims: [1]"
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 4\ninput [{{ name: "X" {tensor} }}]\noutput [{{ name: "Y" {tensor} }}]\n'
        f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{more}"
    )


def repository(folder: Path) -> Path:
    for name in (DETECTOR, CLASSIFIER):
        shutil.copytree(REPOSITORY / name, folder / name)
    write_model(folder, COUNT, _COUNT, _SEQUENCES)
    write_model(folder, CALLER, _CALLER, "")
    write_model(folder, DRIP, _DRIP, "model_transaction_policy { decoupled: true }\n")
    return folder


@dataclass
class Sequences(Clients):
    """Sequences, one after the other by each client: over gRPC, over REST, and of the model that calls the stateful one by itself."""

    pause_s: float
    http_address: str
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def one(self) -> None:
        identity = next(self.ids)
        over_http, model = identity % 3 == 1, CALLER if identity % 3 == 2 else COUNT
        module: Any = tritonclient.http if over_http else tritonclient.grpc
        tensor = module.InferInput("X", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[2.0]], np.float32))
        for call in range(1, CALLS + 1):
            ends = {"sequence_start": call == 1, "sequence_end": call == CALLS}
            try:
                if over_http:
                    answer = await asyncio.to_thread(self.over_http, tensor, identity, ends)
                else:
                    answer = await self.client.infer(model, [tensor], sequence_id=identity, client_timeout=20.0, **ends)
                if answer.as_numpy("Y").item() != 2.0 * call:
                    self.wrong.append(f"sequence {identity}, call {call}: {answer.as_numpy('Y').item()}")
            except InferenceServerException as error:
                self.wrong.append(f"sequence {identity}, call {call}: {error}")
                return
            await asyncio.sleep(self.pause_s)

    def over_http(self, tensor: Any, identity: int, ends: dict[str, bool]) -> Any:
        """One call over REST, on a connection of its own, so that no connection keeps a sequence on its server."""
        with tritonclient.http.InferenceServerClient(self.http_address, network_timeout=20.0) as client:
            return client.infer(COUNT, [tensor], sequence_id=identity, **ends)


def sequences(sidecar: Sidecar, clients: int, pause_s: float) -> AbstractAsyncContextManager[Sequences]:
    http_address = yaml.safe_load(sidecar.settings.read_text())["envoy"]["http_listen"]
    return Sequences(tritonclient.grpc.aio.InferenceServerClient(sidecar.grpc_address), pause_s, http_address).running(clients)


def server_of(name: str, triton: TritonProcess) -> Server:
    metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
    return Server(
        name, "cpu:0", Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics, Phase.SERVING, launched=False
    )


def with_other(sidecar: Sidecar, other: Server) -> None:
    """The settings with a second adopted server, which holds the stateful model too, and a pipeline of that model."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    first = settings["servers"][ADOPTED]
    settings["servers"][OTHER] = first | {kind: str(getattr(other, f"{kind}_address")) for kind in ("grpc", "http", "metrics")}
    surface = {"form": "contention", "alpha_ms": 0.1, "beta_ms": 0.4, "gamma_ms": 0.5, "zeta_ms": 22}
    profile = {"surface": surface, "instance_init_s": 0.5, "server_launch_s": 1.0}
    settings["models"][COUNT] = {"instances": [1, 3], "max_batch": 4, "profile": profile}
    settings["pipelines"]["counter"] = {"model": COUNT, "slo_ms": 100}
    settings["calls"] = {CALLER: [COUNT]}
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))


def pinned_to(status: Status) -> list[str]:
    return [server["name"] for server in status["servers"] if server["pinned"] == [CALLER, COUNT]]


def counted(status: Status, server: str) -> int:
    return next(int(each["models"][COUNT]["instances"]) for each in status["servers"] if each["name"] == server)


async def calls_of(server: Server) -> float:
    async with HttpClient(5.0) as client:
        return (await fetch_metrics(client, server.metrics_address))[COUNT].success


def check_init_from(server: Server, path: Path) -> None:
    """The settings that are read from the running server are valid, and have its models."""
    addresses = (str(server.http_address), str(server.metrics_address))
    assert init_from_command(path, False, str(server.grpc_address), *addresses) == 0
    settings = load_settings(path)
    assert (settings.mode, set(settings.models)) == (Mode.ADVISORY, {DETECTOR, CLASSIFIER, COUNT, CALLER})
    assert "keeps state between the calls" in path.read_text()


def test_sequences_stay_on_one_server_while_instances_and_servers_come_and_go(tmp_path: Path) -> None:
    models = repository(tmp_path / "models")
    with ExitStack() as stack:
        (tmp_path / OTHER).mkdir()
        triton = stack.enter_context(running_triton(tmp_path, [DETECTOR, CLASSIFIER, COUNT, CALLER], repository=models, exit_timeout_s=2))
        second = stack.enter_context(running_triton(tmp_path / OTHER, [COUNT, CALLER], repository=models, exit_timeout_s=2))
        sidecar = sidecar_beside(server_of(ADOPTED, triton), models, tmp_path)
        check_init_from(server_of(ADOPTED, triton), tmp_path / "from-server.yaml")
        with_other(sidecar, server_of(OTHER, second))

        async def scenario() -> None:
            first = await sidecar.start()
            assert pinned_to(first) == [ADOPTED]
            async with sequences(sidecar, clients=10, pause_s=0.01) as busy:
                async with traffic(sidecar, SURGE_RPS) as load:
                    await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                    await sidecar.until("more instances", lambda s: counted(s, ADOPTED) > 1)
                    await busy.more(20)
                    summary = await load.end()
                assert (summary.failed, busy.wrong) == (0, [])
            async with sequences(sidecar, clients=2, pause_s=0.3) as calm:
                await sidecar.until("retirement", lambda s: not launched(s))
                await sidecar.until("one instance", lambda s: counted(s, ADOPTED) == 1)
                await calm.more(4)
                assert calm.wrong == []
            assert await calls_of(server_of(OTHER, second)) == 0
            # One that was skipped, because its server was still being brought up, is tried again at the next tick.
            query = "select sentence, detail from outcomes where outcome != 'skipped' and (outcome != 'done' or detail != '')"
            assert sidecar.journal(query) == []
            os.kill(triton.pid, signal.SIGKILL)
            await sidecar.until("another server", lambda s: pinned_to(s) == [OTHER])
            async with sequences(sidecar, clients=2, pause_s=0.01) as moved:
                await moved.more(2)
                async with asyncio.timeout(10.0):
                    while moved.wrong:  # until Envoy has the new route
                        moved.wrong.clear()
                        await moved.more(2)
                await moved.more(6)
                assert moved.wrong == []

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


def test_models_with_sequences_and_streams_are_warmed_up_and_a_drain_waits_for_a_silent_stream(tmp_path: Path) -> None:
    models = repository(tmp_path / "models")
    config = LocalLaunchConfig((DeviceSlot("a", "cpu:0"),), models, ready_timeout_s=60.0, drain_timeout_s=20.0, stop_timeout_s=2.0)

    async def scenario() -> None:
        launcher = LocalLauncher(config, tmp_path / "state")
        server = await launcher.wait_ready(await launcher.launch("whole", "a", {COUNT: ModelState(2, 4), DRIP: ModelState(1, 1)}))
        try:
            await launcher.warm_up(server)
            async with HttpClient(5.0) as client:
                assert (await fetch_metrics(client, server.metrics_address))[COUNT].failure == 0
            command = (sys.executable, "-c", _STREAM_CLIENT, str(server.grpc_address))
            stream = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            assert stream.stdout is not None
            assert float(await asyncio.wait_for(stream.stdout.readline(), 20.0)) == 0.0
            assert await launcher.wait_idle(server)
            assert (await asyncio.wait_for(stream.stdout.read(), 5.0)).split()[-1] == b"end"
            assert await asyncio.wait_for(stream.wait(), 5.0) == 0
        finally:
            await launcher.stop(server)

    try:
        asyncio.run(scenario())
    finally:
        stop_everything(tmp_path / "state", timeout_s=1.0)
