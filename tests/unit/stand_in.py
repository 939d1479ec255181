"""A stand-in for a `tritonserver` with explicit model control, in the test's own event loop: the calls that a launcher makes of it.

`write_program` makes a program of it, for launchers that start processes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from google.protobuf import json_format, text_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from tests.unit.kserve_server import SERVICE
from themis_triton.adapters.triton.client import KEY_HEADER


class StandIn:
    """Serves at the addresses of its arguments, which are those of `tritonserver`; its models compute nothing."""

    def __init__(self, repository: Path, arguments: list[str], *, gpu: bool = False) -> None:
        self._options = dict(word.removeprefix("--").split("=", 1) for word in arguments)
        assert self._options["model-control-mode"] == "explicit"
        self._key = self._options["grpc-restricted-protocol"].partition("key=")[2]
        self._repository = repository
        self._gpu = gpu
        self.models: dict[str, Any] = {}
        self.log = [f"started with {len(arguments)} arguments"]
        self._grpc = grpc.aio.server()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        calls = {
            "ServerLive": (self._live, pb.ServerLiveRequest, pb.ServerLiveResponse),
            "ModelReady": (self._ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
            "ModelConfig": (self._config, pb.ModelConfigRequest, pb.ModelConfigResponse),
            "ModelMetadata": (self._metadata, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
            "ModelInfer": (self._infer, pb.ModelInferRequest, pb.ModelInferResponse),
            "RepositoryModelLoad": (self._load, pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse),
            "RepositoryModelUnload": (self._unload, pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(call, request.FromString, response.SerializeToString)
            for name, (call, request, response) in calls.items()
        }
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._grpc.add_insecure_port(f"{self._options['grpc-address']}:{self._options['grpc-port']}")
        await self._grpc.start()
        app = web.Application()
        app.add_routes([web.get("/v2/health/live", self._alive), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        for part in ("http", "metrics"):
            await web.TCPSite(self._runner, self._options[f"{part}-address"], int(self._options[f"{part}-port"])).start()

    async def kill(self) -> None:
        """End at once; safe to repeat."""
        await self._grpc.stop(grace=None)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = [f'nv_inference_request_success{{model="{name}",version="1"}} 0' for name in self.models]
        memory = {"used": "4194304.000000", "total": "16777216.000000"} if self._gpu else {}
        lines += [f'nv_gpu_memory_{part}_bytes{{gpu_uuid="GPU-5d1f"}} {amount}' for part, amount in memory.items()]
        return web.Response(text="\n".join(["# metrics", *lines, ""]))

    async def _live(self, _request: Any, _context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, _context: Any) -> Any:
        return pb.ModelReadyResponse(ready=request.name in self.models)

    async def _config(self, request: Any, _context: Any) -> Any:
        return pb.ModelConfigResponse(config=self.models[request.name])

    async def _metadata(self, request: Any, _context: Any) -> Any:
        config = self.models[request.name]
        answer = pb.ModelMetadataResponse(name=request.name)
        for entries, added in ((config.input, answer.inputs), (config.output, answer.outputs)):
            for entry in entries:
                added.add(name=entry.name, datatype=DataType.Name(entry.data_type).removeprefix("TYPE_"), shape=[-1, *entry.dims])
        return answer

    async def _infer(self, request: Any, _context: Any) -> Any:
        answer = pb.ModelInferResponse(model_name=request.model_name)
        for output in self.models[request.model_name].output:
            answer.outputs.add(name=output.name, datatype="FP32", shape=[1, 1])
            answer.raw_output_contents.append(b"\0" * 4)
        return answer

    async def _load(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
        file = self._repository / request.model_name / "config.pbtxt"
        if not file.is_file():
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"failed to load '{request.model_name}', failed to poll from model repository"
            )
        given = request.parameters["config"].string_param if "config" in request.parameters else ""
        config = json_format.Parse(given, ModelConfig()) if given else text_format.Parse(file.read_text(), ModelConfig())
        self.models[request.model_name] = config
        self.log.append(f"successfully loaded '{request.model_name}'")
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
        self.models.pop(request.model_name, None)
        return pb.RepositoryModelUnloadResponse()

    async def _check_key(self, context: Any) -> None:
        if dict(context.invocation_metadata()).get(KEY_HEADER) != self._key:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-key'")


def write_program(file: Path) -> Path:
    """An executable that takes the arguments of `tritonserver`."""
    root = Path(__file__).parents[2]
    file.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\nfrom tests.unit.stand_in import main\nmain()\n",
        encoding="utf-8",
    )
    file.chmod(0o700)
    return file


def main() -> None:
    """Serve with the models of `--load-model` until SIGTERM."""
    asyncio.run(_serve(sys.argv[1:]))


async def _serve(arguments: list[str]) -> None:
    words = [word.partition("=") for word in arguments]
    repository = Path(next(value for name, _, value in words if name == "--model-repository"))
    server, ended = StandIn(repository, [word for word in arguments if "=" in word]), asyncio.Event()
    for name in [value for name, _, value in words if name == "--load-model"]:
        server.models[name] = text_format.Parse((repository / name / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("I0101 00:00:00.000000 1 stand_in.py:1] started", flush=True)  # noqa: T201 - as Triton does
    await server.start()
    await ended.wait()
    await server.kill()
