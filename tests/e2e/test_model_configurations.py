"""Model configurations as people write them: a count change, its way back and a launch keep every other field, value by value."""

from __future__ import annotations

import asyncio
import py_compile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import json_format

from tests.e2e.triton_process import TritonProcess, running_triton
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.triton.model_base import differing_fields
from themis_triton.adapters.triton.model_config import parse_config, to_json
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import Models, ModelState, Phase, Server

pytestmark = pytest.mark.e2e

_CODE = """
import os
from pathlib import Path

import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        self.factor = float((Path(args["model_repository"]).parent / "shared" / "factor.txt").read_text())

    def execute(self, requests):
        values = [backend.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        extra = values[0].dtype.type(os.environ.get("EXTRA", "0"))
        return [backend.InferenceResponse([backend.Tensor("Y", value * value.dtype.type(self.factor) + extra)]) for value in values]
"""
_X, _Y = 'name: "X" data_type: TYPE_FP32', 'name: "Y" data_type: TYPE_FP32'
_RARE = """
max_batch_size: 4
input [ { name: "Z" data_type: TYPE_INT64 dims: [ -1 ] optional: true }, { X dims: [ 2 ] } ]
output { Y dims: [ 2 ] }
instance_group { count: 1 kind: KIND_CPU }
version_policy { specific { versions: [ 1, 3 ] } }
model_warmup { name: "own" batch_size: 2 count: 3 inputs { key: "X" value { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "data" } } }
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env" } }
parameters { key: "note" value { string_value: "a \\"b\\" \\n é" } }
parameters { key: "empty" value { } }
metric_tags { key: "team" value: "x" }
optimization { priority: PRIORITY_MAX input_pinned_memory { enable: false } }
response_cache { enable: true }
"""
_QUEUES = """
max_batch_size: 4
input { X dims: [ -1 ] allow_ragged_batch: true }
output { Y dims: [ -1 ] }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "N" data_type: TYPE_FP32 source_input: "X" }
instance_group [
  {
    name: "left" count: 1 kind: KIND_CPU
    rate_limiter { resources [ { name: "lane" count: 1 }, { name: "bus" global: true count: 2 } ] priority: 3 }
  },
  { name: "right" count: 1 kind: KIND_CPU host_policy: "one" }
]
dynamic_batching {
  preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 priority_levels: 3 default_priority_level: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000000 allow_timeout_override: true max_queue_size: 7 }
  priority_queue_policy { key: 1 value { timeout_action: REJECT default_timeout_microseconds: 9000000 } }
}
"""
_RESHAPED = """
max_batch_size: 0
input { X dims: [ 2 ] reshape { shape: [ 1, 2 ] } }
output { Y dims: [ 2 ] reshape { shape: [ 1, 2 ] } }
instance_group { count: 1 kind: KIND_CPU }
"""
_WHOLE = """
max_batch_size: 4
input { X dims: [ -1 ] }
output { Y dims: [ -1 ] }
instance_group { name: "all" count: 1 kind: KIND_MODEL }
dynamic_batching { preserve_ordering: true default_priority_level: 0 }
"""
TABLE = {"rare": _RARE, "queues": _QUEUES, "reshaped": _RESHAPED, "whole": _WHOLE}
BY_HAND = {"note": "by hand"}
HOST_POLICY = "by-hand"
ARGUMENTS = ("--rate-limit=execution_count", "--model-load-thread-count=8")


def write_models(repository: Path) -> None:
    (repository / "shared").mkdir(parents=True)
    (repository / "shared" / "factor.txt").write_text("2")  # The models read it beside their own folders.
    for name, text in TABLE.items():
        for version in ("1", "3") if name == "rare" else ("1",):
            code = repository / name / version / "model.py"
            code.parent.mkdir(parents=True)
            code.write_text(_CODE)
            py_compile.compile(str(code))  # A cache that Python writes later would make the first change a reload.
        tensors = text.replace("{ X ", f"{{ {_X} ").replace("{ Y ", f"{{ {_Y} ")
        (repository / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\n{tensors}', encoding="utf-8")
    environment = repository / "rare" / "env" / "bin" / "activate"
    environment.parent.mkdir(parents=True)
    environment.write_text("export EXTRA=5\n")
    (repository / "rare" / "warmup").mkdir()
    (repository / "rare" / "warmup" / "data").write_bytes(np.ones(2, dtype=np.float32).tobytes())


def reported(address: str) -> dict[str, Any]:
    """What a server reports of each model, without the counts of its groups."""
    with tritonclient.grpc.InferenceServerClient(address) as client:
        configs = {name: json_format.MessageToDict(client.get_model_config(name).config) for name in TABLE}
    for config in configs.values():
        for group in config["instanceGroup"]:
            group.pop("count")
    return configs


def answer(address: str, model: str) -> list[float]:
    shape = [2] if model == "reshaped" else [1, 2]
    tensor = tritonclient.grpc.InferInput("X", shape, "FP32")
    tensor.set_data_from_numpy(np.array([1, 2], dtype=np.float32).reshape(shape))
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return [float(value) for value in client.infer(model, [tensor]).as_numpy("Y").flat]


async def change_and_back(server: Server) -> Models:
    """Each model gets one instance more, then its own count again; returns the states before."""
    control = TritonModelControl()

    async def one(model: str, state: ModelState) -> None:
        more = replace(state, instances=state.instances + 1)
        assert await control.change(server, model, more) == more
        assert await control.change(server, model, state) == state

    try:
        states = await control.read_models(server, list(TABLE))
        await asyncio.gather(*(one(name, state) for name, state in states.items()))
        return states
    finally:
        await control.close()


def load_by_hand(triton: TritonProcess, repository: Path) -> None:
    """Load one model with other values than its file has, and one with another instance group."""
    config, whole = (parse_config((repository / name / "config.pbtxt").read_text(), "") for name in ("reshaped", "whole"))
    for key, value in BY_HAND.items():
        config.parameters[key].string_value = value
    whole.instance_group[0].host_policy = HOST_POLICY
    whole.instance_group[0].rate_limiter.priority = 2
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as client:
        client.load_model("reshaped", config=to_json(config))
        client.load_model("whole", config=to_json(whole))


def differing(triton: TritonProcess, repository: Path) -> Mapping[str, list[str]]:
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as client:
        served = {name: client.get_model_config(name).config for name in TABLE}
    own = {name: parse_config((repository / name / "config.pbtxt").read_text(encoding="utf-8"), name) for name in TABLE}
    return {name: differing_fields(own[name], served[name]) for name in TABLE}


def started_instances(triton: TritonProcess, *groups: str) -> int:
    log = triton.log_file.read_text(errors="replace")
    return sum(log.count(f"ModelInstanceInitialize: {group}_") for group in groups)


def test_a_count_change_its_way_back_and_a_launch_keep_every_other_field(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_models(repository)
    with running_triton(tmp_path, list(TABLE), repository=repository, exit_timeout_s=5, arguments=ARGUMENTS) as triton:
        load_by_hand(triton, repository)
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        server = Server("adopted", "cpu:0", *addresses, Phase.SERVING, launched=False, model_repository=str(repository))
        by_hand = {"reshaped": ["parameters"], "whole": ["instance_group"]}
        assert differing(triton, repository) == {name: by_hand.get(name, []) for name in TABLE}
        before = reported(triton.grpc_address)
        states = asyncio.run(change_and_back(server))
        assert reported(triton.grpc_address) == before
        assert before["reshaped"]["parameters"] == {key: {"stringValue": value} for key, value in BY_HAND.items()}
        assert started_instances(triton, "left", "right") == states["queues"].instances + 1, "in place from the first change on"
        assert before["whole"]["instanceGroup"][0]["hostPolicy"] == HOST_POLICY
        assert started_instances(triton, "all") == states["whole"].instances + 2, "the file's, the one by hand, and one more in place"
        asyncio.run(check_launch(tmp_path, states, before))


async def check_launch(folder: Path, states: Models, before: Mapping[str, Any]) -> None:
    """A launched copy has the same, except what was loaded by hand."""
    slots = (DeviceSlot("cpu-1", "cpu:1"),)
    launcher = LocalLauncher(
        LocalLaunchConfig(slots, folder / "models", stop_timeout_s=2.0, drain_timeout_s=2.0, arguments=ARGUMENTS), folder / "state"
    )
    server = await launcher.launch("one", "cpu-1", states)
    try:
        ready = await launcher.wait_ready(server)
        after = await asyncio.to_thread(reported, str(ready.grpc_address))
        own = {key: value for key, value in before["reshaped"].items() if key != "parameters"}
        (group,) = after["whole"].pop("instanceGroup")
        assert group == {"name": "all", "kind": "KIND_MODEL"}
        whole = {key: value for key, value in before["whole"].items() if key != "instanceGroup"}
        assert after == {**before, "reshaped": own, "whole": whole}
        answers = {name: answer(str(ready.grpc_address), name) for name in TABLE}
        assert answers == {name: [7.0, 9.0] if name == "rare" else [2.0, 4.0] for name in TABLE}
    finally:
        await launcher.stop(server)
