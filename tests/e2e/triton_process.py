"""A real tritonserver for one test module: started from the pip package on free loopback ports, stopped by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parents[2] / "model_repository"
_READY_TIMEOUT_S = 60.0
# Taking an instance of the Python backend away takes a second each.
_EXIT_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class TritonProcess:
    pid: int
    grpc_address: str
    http_address: str
    metrics_url: str
    log_file: Path


def package_folder() -> Path:
    spec = find_spec("pytriton")
    assert spec is not None, "nvidia-pytriton is not installed (extra `local`)"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tritonserver"


def prepare_backends(folder: Path) -> Path:
    """A backend directory whose Python backend has the stub of this Python beside it.

    The stub finds its shared libraries in `nvidia_pytriton.libs` four folders up, so the package's own layout is kept.
    """
    package = package_folder()
    backends = folder / "pytriton" / "tritonserver" / "backends"
    shutil.copytree(package / "backends", backends, ignore=shutil.ignore_patterns("__pycache__"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy2(stub, backends / "python" / stub.name)
    (folder / "nvidia_pytriton.libs").symlink_to(package.parents[1] / "nvidia_pytriton.libs")
    return backends


def free_ports(count: int) -> list[int]:
    """Distinct free loopback ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in sockets]


@contextmanager
def running_triton(
    folder: Path,
    models: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    repository: Path = REPOSITORY,
    exit_timeout_s: int = _EXIT_TIMEOUT_S,
    arguments: Sequence[str] = (),
    ports: Sequence[int] = (),
    host: str = "127.0.0.1",
) -> Iterator[TritonProcess]:
    """Serve the models in explicit mode; `folder` holds backends and log, and is the test's own. `ports`: of HTTP, gRPC and metrics.

    `host`: an IP address of this machine. Triton's HTTP and metrics services take an IPv6 address after `ipv6:` only.
    """
    http_port, grpc_port, metrics_port = ports or free_ports(3)
    log_file, at = folder / "triton.log", f"[{host}]" if ":" in host else host
    command = [
        str(package_folder() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={prepare_backends(folder)}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        *(f"--{kind}-address={f'ipv6:{host}' if ':' in host else host}" for kind in ("http", "metrics")),
        f"--grpc-address={at}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
        f"--exit-timeout-secs={exit_timeout_s}",
        *arguments,
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "PATH": path, **(environment or {})}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = TritonProcess(process.pid, f"{at}:{grpc_port}", f"{at}:{http_port}", f"http://{at}:{metrics_port}/metrics", log_file)
    try:
        _wait_ready(process, server)
        yield server
    finally:
        _stop(process, exit_timeout_s + _STOP_TIMEOUT_S)


def _wait_ready(process: subprocess.Popen[bytes], server: TritonProcess) -> None:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=1.0) as client:
        while not _is_ready(client, server):
            tail = server.log_file.read_text(errors="replace")[-4000:]
            assert process.poll() is None, f"tritonserver ended with {process.returncode}:\n{tail}"
            assert time.monotonic() < deadline_s, f"tritonserver was not ready within {_READY_TIMEOUT_S} s:\n{tail}"
            time.sleep(0.05)


def _is_ready(client: httpx.Client, server: TritonProcess) -> bool:
    try:
        return client.get(f"http://{server.http_address}/v2/health/ready").is_success
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    finally:
        # The stubs are in the server's own process group; nothing of it may outlive the test.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_STOP_TIMEOUT_S)
