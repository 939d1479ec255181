"""Pipelines that the server drives by itself: an ensemble, and a Python model that calls another (BLS)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, Sidecar, Status, launched
from tests.e2e.test_any_model import ENSEMBLE, LATER, calls, repository, sidecar_beside
from tests.e2e.triton_process import running_triton
from themis_triton.adapters.processes import stop_everything
from themis_triton.commands.settings_commands import init_from_command
from themis_triton.core.address import Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings

pytestmark = pytest.mark.e2e
CALLER = "caller"
_CALLER = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        inner = pb_utils.InferenceRequest(
            model_name="loaded-later", requested_output_names=["OUTPUT"], inputs=[pb_utils.Tensor("INPUT", value * 2 + 1)]
        ).exec()
        if inner.has_error():
            raise pb_utils.TritonModelException(inner.error().message())
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", pb_utils.get_output_tensor_by_name(inner, "OUTPUT").as_numpy())])
"""


def graphs(folder: Path) -> Path:
    """The repository with an ensemble, and a model that calls another by itself."""
    repository(folder)
    (folder / CALLER / "1").mkdir(parents=True)
    (folder / CALLER / "1" / "model.py").write_text(_CALLER)
    tensor = "data_type: TYPE_FP32 dims: [-1]"
    (folder / CALLER / "config.pbtxt").write_text(
        f'name: "{CALLER}"\nbackend: "python"\nmax_batch_size: 8\ninput [{{ name: "INPUT" {tensor} }}]\n'
        f'output [{{ name: "OUTPUT" {tensor} }}]\ndynamic_batching {{ }}\ninstance_group [{{ count: 1 kind: KIND_CPU }}]\n'
    )
    return folder


def with_graphs(sidecar: Sidecar) -> Sidecar:
    settings = yaml.safe_load(sidecar.settings.read_text())
    classifier = settings["models"][CLASSIFIER]
    settings["models"] |= {LATER: classifier, CALLER: classifier}
    settings["pipelines"] = {"ensemble": {"model": ENSEMBLE, "slo_ms": 300}, "bls": {"model": CALLER, "slo_ms": 300}}
    settings["calls"] = {CALLER: [LATER]}
    settings["launch"]["slots"] = ["cpu:1", "cpu:2"]
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))
    return sidecar


def serving(status: Status, model: str) -> bool:
    return any(model in (server["ready_models"] or ()) for server in launched(status, "serving"))


def test_an_ensemble_and_a_model_that_calls_another_are_scaled_both_ways_without_a_failure(tmp_path: Path) -> None:
    models = graphs(tmp_path / "models")
    with running_triton(tmp_path, [DETECTOR, CLASSIFIER, ENSEMBLE, LATER, CALLER], repository=models, exit_timeout_s=5) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        adopted = Server(ADOPTED, "cpu:0", *addresses, Phase.SERVING, launched=False)
        sidecar = with_graphs(sidecar_beside(adopted, models, tmp_path))
        ensemble, bls = load_settings(sidecar.settings).pipelines
        read = tmp_path / "from-server.yaml"
        assert init_from_command(read, False, str(addresses[0]), str(addresses[1]), str(addresses[2])) == 0
        assert {each.front: each.stages for each in load_settings(read).pipelines}[ENSEMBLE] == (DETECTOR, CLASSIFIER)
        assert (ensemble.stages, ensemble.front, bls.stages) == ((DETECTOR, CLASSIFIER), ENSEMBLE, (CALLER, LATER))

        async def scenario() -> None:
            await sidecar.start()
            trace = TraceOptions(rate_rps=25.0, duration_s=120)
            loads = tuple(PipelineLoad(p.name, p.client_calls, p.slo_ms, trace) for p in (ensemble, bls))
            async with calls(sidecar, ENSEMBLE) as one, calls(sidecar, CALLER) as other:
                async with LoadProcess(LoadOptions(sidecar.grpc_address, loads)) as load:
                    await sidecar.until("a server for each", lambda s: serving(s, ENSEMBLE) and serving(s, CALLER))
                    await asyncio.gather(one.more(30), other.more(30))
                    load.request_stop()
                    async for _ in load.seconds():
                        pass
                    summaries = load.report.summaries
                await sidecar.until("retirement", lambda s: not launched(s))
                await asyncio.gather(one.more(5), other.more(5))
            assert [(summary.failed, summary.errors) for summary in summaries] == [(0, {}), (0, {})]
            assert (one.wrong, other.wrong) == ([], [])

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)
