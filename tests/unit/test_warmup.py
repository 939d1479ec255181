"""Warm-up against servers with small queues: no request is refused that one at a time an instance would not be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.kserve_server import serving
from tests.unit.samples import server
from themis_triton.adapters.triton.warmup import Warmup
from themis_triton.core.address import Address
from themis_triton.core.errors import LaunchFailedError, ServerError, WarmupFailedError
from themis_triton.core.fleet import ModelState, Server

FULL = "[request id: <id_unknown>] Exceeds maximum queue size"


class Queues:
    """Triton's calls for models that take so many requests at a time; one refuses further ones. `callees`: models that others call."""

    versions: tuple[str, ...] = ("1",)

    def __init__(self, limits: Mapping[str, int], callees: Mapping[str, str] | None = None, told: int = 0) -> None:
        self.limits, self.callees, self.told = limits, callees or {}, told
        self.now, self.most, self.answered = Counter[str](), Counter[str](), Counter[str]()

    async def infer(self, request: Any, context: Any) -> Any:
        models = [request.model_name, *([self.callees[request.model_name]] if request.model_name in self.callees else [])]
        self.now.update(models)
        self.most |= self.now
        try:
            if any(self.now[model] > self.limits[model] for model in models):
                await context.abort(grpc.StatusCode.UNAVAILABLE, FULL)
            await asyncio.sleep(0.01)
        finally:
            self.now.subtract(models)
        self.answered[request.model_name + request.model_version] += 1
        answer = pb.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="Y", datatype="FP32", shape=[1])
        answer.raw_output_contents.append(b"\0\0\0\0")
        return answer

    async def metadata(self, request: Any, _context: Any) -> Any:
        answer = pb.ModelMetadataResponse(name=request.name, versions=self.versions)
        answer.inputs.add(name="X", datatype="FP32", shape=[1])
        answer.outputs.add(name="Y", datatype="FP32", shape=[1])
        return answer

    async def config(self, request: Any, _context: Any) -> Any:
        answer = pb.ModelConfigResponse()
        answer.config.name = request.name
        answer.config.dynamic_batching.default_queue_policy.max_queue_size = self.told
        return answer

    async def live(self, _request: Any, _context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def warm(self, models: Mapping[str, int]) -> None:
        methods = {
            "ModelInfer": (self.infer, pb.ModelInferRequest, pb.ModelInferResponse),
            "ModelMetadata": (self.metadata, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
            "ModelConfig": (self.config, pb.ModelConfigRequest, pb.ModelConfigResponse),
            "ServerLive": (self.live, pb.ServerLiveRequest, pb.ServerLiveResponse),
        }
        async with serving(methods) as port:
            await warmed(at(port), models)


def at(port: int) -> Server:
    address = Address("127.0.0.1", port)
    return replace(server("s"), grpc_address=address, http_address=address, metrics_address=address)


async def warmed(at: Server, models: Mapping[str, int]) -> None:
    async with Warmup(at, rounds=2, timeout_s=10.0) as warmup:
        await warmup.warm_all({model: ModelState(count, 1) for model, count in models.items()})


def test_each_instance_gets_one_request_at_a_time() -> None:
    queues = Queues({"m": 4})
    asyncio.run(queues.warm({"m": 4}))
    assert (queues.most["m"], queues.answered["m"]) == (4, 8)


def test_each_version_that_is_served_is_warmed_up() -> None:
    queues = Queues({"m": 2})
    queues.versions = ("1", "3")
    asyncio.run(queues.warm({"m": 2}))
    assert queues.answered == {"m1": 4, "m3": 4}


def test_a_queue_smaller_than_the_instances_is_not_overrun() -> None:
    queues = Queues({"m": 2}, told=2)
    asyncio.run(queues.warm({"m": 4}))
    assert (queues.most["m"], queues.answered["m"]) == (2, 8)


def test_a_caller_whose_callee_has_a_small_queue_is_warmed_up_alone() -> None:
    queues = Queues({"bls": 9, "inner": 1}, {"bls": "inner"})
    asyncio.run(queues.warm({"bls": 3, "inner": 1}))
    assert queues.most["inner"] > 1, "some were refused at first"
    assert (queues.answered["bls"] >= 6, queues.answered["inner"] >= 2) == (True, True)


def test_a_refusal_of_one_request_at_a_time_is_the_models_failure_with_the_remedy_of_its_queue() -> None:
    with pytest.raises(WarmupFailedError, match="Exceeds maximum queue size") as failure:
        asyncio.run(Queues({"m": 0}).warm({"m": 1}))
    assert failure.value.model == "m"
    assert "max_queue_size" in failure.value.remedy


def test_a_server_that_does_not_answer_is_no_failure_of_a_model() -> None:
    async def scenario() -> None:
        async with serving({}) as port:
            gone = at(port)
        await warmed(gone, {"m": 1})

    with pytest.raises(ServerError, match="did not answer") as failure:
        asyncio.run(scenario())
    assert not isinstance(failure.value, LaunchFailedError)
