"""A small KServe-v2 gRPC server in the test's own event loop: real gRPC, chosen delays and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
_ANY = "127.0.0.1:0"


@dataclass
class KServe:
    """`delay_s(model, number of the request)` before each answer; `spoil` changes an answer; `fail_with` refuses."""

    offsets: dict[str, float] = field(default_factory=lambda: {"detector": 0.5, "classifier": -3.0})
    delay_s: Callable[[str, int], float] = lambda _model, _number: 0.0
    spoil: Callable[[str, int, Any], None] = lambda _model, _number, _answer: None
    fail_with: Callable[[str, int], grpc.StatusCode | None] = lambda _model, _number: None
    seen: list[tuple[str, float, bytes]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    address: str = ""

    async def infer(self, request: Any, context: Any) -> Any:
        model, number = request.model_name, len(self.seen)
        self.seen.append((model, asyncio.get_running_loop().time(), request.raw_input_contents[0]))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s(model, number))
        finally:
            self.in_flight -= 1
        code = self.fail_with(model, number)
        if code is not None:
            await context.abort(code, f"{model} will not")
        answer = self._answer(request)
        self.spoil(model, number, answer)
        return answer

    def _answer(self, request: Any) -> Any:
        answer = pb.ModelInferResponse(model_name=request.model_name)
        given = request.inputs[0]
        raw = request.raw_input_contents[0]
        if request.model_name in self.offsets:
            raw = (np.frombuffer(raw, "<f4") * 2 + self.offsets[request.model_name]).astype("<f4").tobytes()
        answer.outputs.add(name="OUTPUT", datatype=given.datatype, shape=list(given.shape))
        answer.raw_output_contents.append(raw)
        return answer

    async def metadata(self, request: Any, context: Any) -> Any:
        answer = pb.ModelMetadataResponse(name=request.name)
        if request.name in self.offsets:
            answer.inputs.add(name="INPUT", datatype="FP32", shape=[-1, -1])
        elif request.name == "echo":
            answer.inputs.add(name="TEXT", datatype="BYTES", shape=[-1, 2])
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return answer

    async def config(self, request: Any, _context: Any) -> Any:
        answer = pb.ModelConfigResponse()
        if request.name in self.offsets:
            answer.config.parameters["offset"].string_value = str(self.offsets[request.name])
        return answer

    @asynccontextmanager
    async def serve(self, tls: Mapping[str, str] | None = None) -> AsyncIterator[KServe]:
        methods = {
            "ModelInfer": (self.infer, pb.ModelInferRequest, pb.ModelInferResponse),
            "ModelMetadata": (self.metadata, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
            "ModelConfig": (self.config, pb.ModelConfigRequest, pb.ModelConfigResponse),
        }
        async with serving(methods, tls) as port:
            self.address = f"127.0.0.1:{port}"
            yield self


@asynccontextmanager
async def serving(methods: Mapping[str, tuple[Callable[..., Any], Any, Any]], tls: Mapping[str, str] | None = None) -> AsyncIterator[int]:
    """Serve calls of Triton's gRPC service, each with its request and response type; the port. `tls`: files of `certificate` and `key`."""
    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(call, request.FromString, response.SerializeToString)
        for name, (call, request, response) in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_secure_port(_ANY, _credentials(tls)) if tls is not None else server.add_insecure_port(_ANY)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


def _credentials(tls: Mapping[str, str]) -> grpc.ServerCredentials:
    key, certificate = (Path(tls[name]).read_bytes() for name in ("key", "certificate"))
    return grpc.ssl_server_credentials([(key, certificate)])
