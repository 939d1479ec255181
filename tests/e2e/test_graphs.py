"""Pipelines that the server drives by itself, ensembles and a Python model that calls another (BLS), and pipelines that share models."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, Sidecar, Status, launched
from tests.e2e.test_any_model import ENSEMBLE, LATER, calls, repository, sidecar_beside
from tests.e2e.triton_process import REPOSITORY, TritonProcess, running_triton
from themis_triton.adapters.process_end import stop_everything
from themis_triton.commands.settings_commands import init_from_command
from themis_triton.core.address import Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings

pytestmark = pytest.mark.e2e
CALLER = "caller"
FORK, SPLIT, LEFT, RIGHT, JOIN, FIRST, LAST = "fork", "split", "left", "right", "join", "first", "last"
COPIES = {SPLIT: 1, LEFT: 2, RIGHT: 3, FIRST: 4, LAST: 5}
"""Copies of the classifier by the offset of their answers, `2·INPUT + offset`, so that no other's answer is right."""
FORKED = ((3 * 2 + 1) * 2 + 2) + ((3 * 2 + 1) * 2 + 3)
"""What the fork answers to 3: the sum of its branches."""
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
    settings["launch"]["slots"] = ["cpu:1", "cpu:2", "cpu:3"]
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))
    return sidecar


_JOIN = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        pairs = [[pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("LEFT", "RIGHT")] for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", left + right)]) for left, right in pairs]
"""
_FORK_STEPS = """
step { model_name: "split" model_version: -1 input_map { key: "INPUT" value: "INPUT" } output_map { key: "OUTPUT" value: "both" } }
step { model_name: "left" model_version: -1 input_map { key: "INPUT" value: "both" } output_map { key: "OUTPUT" value: "one" } }
step { model_name: "right" model_version: -1 input_map { key: "INPUT" value: "both" } output_map { key: "OUTPUT" value: "other" } }
step {
  model_name: "join" model_version: -1
  input_map { key: "LEFT" value: "one" } input_map { key: "RIGHT" value: "other" } output_map { key: "OUTPUT" value: "OUTPUT" }
}
"""


def branches(folder: Path) -> Path:
    """A repository with an ensemble of a fork and a join, one of whose branches other pipelines call too, and models for those."""
    for name, offset in COPIES.items():
        shutil.copytree(REPOSITORY / CLASSIFIER, folder / name)
        config = folder / name / "config.pbtxt"
        text = (
            config.read_text()
            .replace(f'name: "{CLASSIFIER}"', f'name: "{name}"')
            .replace('"init_s" value { string_value: "0.5"', '"init_s" value { string_value: "0"')
        )
        config.write_text(text.replace('"offset" value { string_value: "2"', f'"offset" value {{ string_value: "{offset}"'))
    tensor = "data_type: TYPE_FP32 dims: [-1]"
    head = f'max_batch_size: 8\noutput [{{ name: "OUTPUT" {tensor} }}]\n'
    for name in (JOIN, FORK):
        (folder / name / "1").mkdir(parents=True)
    (folder / JOIN / "1" / "model.py").write_text(_JOIN)
    inputs = f'input [{{ name: "LEFT" {tensor} }}, {{ name: "RIGHT" {tensor} }}]\n'
    (folder / JOIN / "config.pbtxt").write_text(
        f'name: "{JOIN}"\nbackend: "python"\n{head}{inputs}dynamic_batching {{ }}\ninstance_group [{{ count: 1 kind: KIND_CPU }}]\n'
    )
    (folder / FORK / "config.pbtxt").write_text(
        f'name: "{FORK}"\nplatform: "ensemble"\n{head}input [{{ name: "INPUT" {tensor} }}]\nensemble_scheduling {{{_FORK_STEPS}}}\n'
    )
    return folder


def with_branches(sidecar: Sidecar) -> Sidecar:
    """The fork, and two pipelines with one first model, one of which shares a model with the fork."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    classifier = settings["models"][CLASSIFIER]
    surface = {"form": "contention", "alpha_ms": 0.1, "beta_ms": 0.1, "gamma_ms": 0.1, "zeta_ms": 1}
    quick = {"profile": {**classifier["profile"], "surface": surface}}
    settings["models"] = {**dict.fromkeys(COPIES, classifier), JOIN: quick}
    settings["pipelines"] = {
        "fork": {"model": FORK, "slo_ms": 300},
        "video": {"stages": [FIRST, LEFT], "slo_ms": 300},
        "other": {"stages": [FIRST, LAST], "slo_ms": 400},
    }
    settings["launch"]["slots"] = ["cpu:1", "cpu:2", "cpu:3"]
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))
    return sidecar


def adopted_by(triton: TritonProcess) -> Server:
    """The running server as the sidecar adopts it."""
    metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
    addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
    return Server(ADOPTED, "cpu:0", *addresses, Phase.SERVING, launched=False)


def serving(status: Status, model: str) -> bool:
    return any(model in (server["ready_models"] or ()) for server in launched(status, "serving"))


def test_an_ensemble_and_a_model_that_calls_another_are_scaled_both_ways_without_a_failure(tmp_path: Path) -> None:
    models = graphs(tmp_path / "models")
    with running_triton(tmp_path, [DETECTOR, CLASSIFIER, ENSEMBLE, LATER, CALLER], repository=models, exit_timeout_s=5) as triton:
        adopted = adopted_by(triton)
        sidecar = with_graphs(sidecar_beside(adopted, models, tmp_path))
        ensemble, bls = load_settings(sidecar.settings).pipelines
        read = tmp_path / "from-server.yaml"
        assert init_from_command(read, False, triton.grpc_address, triton.http_address, str(adopted.metrics_address)) == 0
        assert {each.front: each.stages for each in load_settings(read).pipelines}[ENSEMBLE] == (DETECTOR, CLASSIFIER)
        assert bls.order == f"{CALLER} (calls {LATER})"
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


def test_a_fork_and_pipelines_that_share_models_are_scaled_both_ways_without_a_failure(tmp_path: Path) -> None:
    models = branches(tmp_path / "models")
    with running_triton(tmp_path, [*COPIES, JOIN, FORK], repository=models, exit_timeout_s=5) as triton:
        sidecar = with_branches(sidecar_beside(adopted_by(triton), models, tmp_path))
        pipelines = load_settings(sidecar.settings).pipelines
        assert pipelines[0].order == f"{SPLIT} → ({LEFT} ∥ {RIGHT}) → {JOIN}"

        async def scenario() -> None:
            await sidecar.start()
            trace = TraceOptions(rate_rps=25.0, duration_s=120)
            loads = tuple(PipelineLoad(p.name, p.client_calls, p.slo_ms, trace) for p in pipelines)
            async with calls(sidecar, FORK, FORKED) as fork:
                async with LoadProcess(LoadOptions(sidecar.grpc_address, loads)) as load:
                    await sidecar.until("a server for each", lambda s: serving(s, FORK) and serving(s, FIRST))
                    await fork.more(30)
                    load.request_stop()
                    async for _ in load.seconds():
                        pass
                    summaries = load.report.summaries
                await sidecar.until("retirement", lambda s: not launched(s))
                await fork.more(5)
            assert [(summary.failed, summary.errors) for summary in summaries] == [(0, {})] * 3
            assert fork.wrong == []

        try:
            asyncio.run(scenario())
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)
