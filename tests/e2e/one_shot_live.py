"""The sidecar itself in the situations of `one_shot`: it adopts the servers and decides the growth."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.e2e.one_shot import CONTROL_S, PER_REQUEST_MS, SERVICE_MS, SLO_MS, START_S, Case
from tests.e2e.triton_process import TritonProcess
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports

START_TIMEOUT_S = 200.0


@contextmanager
def sidecar(folder: Path, servers: Sequence[TritonProcess], repository: Path, cases: tuple[Case, ...]) -> Iterator[str]:
    """The address for clients of a sidecar that scales the cases' models; its log is `daemon.log` in the folder."""
    grpc, http, admin, status = (f"127.0.0.1:{port}" for port in free_ports(4))
    path, state = folder / "themis.yaml", folder / "state"
    path.write_text(yaml.safe_dump(_settings(servers, repository, cases, state, (grpc, http, admin, status))))
    with (folder / "daemon.log").open("wb") as log:
        command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_history(process, status, folder / "daemon.log")
        yield grpc
    finally:
        process.kill()
        process.wait(10.0)
        stop_everything(state, timeout_s=1.0)


def _settings(
    servers: Sequence[TritonProcess], repository: Path, cases: tuple[Case, ...], state: Path, addresses: tuple[str, ...]
) -> dict[str, object]:
    grpc, http, admin, status = addresses
    surface = {"form": "contention", "alpha_ms": 0, "beta_ms": PER_REQUEST_MS, "gamma_ms": 0, "zeta_ms": SERVICE_MS - PER_REQUEST_MS}
    profiles = {case.name: {"surface": surface, "instance_init_s": round(START_S + case.init_s + CONTROL_S, 2)} for case in cases}
    adopted = [
        {
            "grpc": server.grpc_address,
            "http": server.http_address,
            "metrics": server.metrics_url.removeprefix("http://").removesuffix("/metrics"),
            "device": f"cpu:{number}",
            "model_repository": str(repository),
        }
        for number, server in enumerate(servers)
    ]
    return {
        "state_directory": str(state),
        "servers": {f"adopted-{number}": each for number, each in enumerate(adopted)},
        "models": {
            case.name: {"instances": [1, case.max_instances], "max_batch": case.max_batch, "profile": profiles[case.name]} for case in cases
        },
        "pipelines": {case.name: {"stages": [case.name], "slo_ms": SLO_MS} for case in cases},
        "envoy": {"grpc_listen": grpc, "http_listen": http, "admin": admin},
        "status": {"address": status},
    }


def _wait_for_history(process: subprocess.Popen[bytes], status: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline_s:
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{log.read_text()[-4000:]}"
            try:
                seen = client.get(f"http://{status}/v1/status").json()
            except httpx.TransportError:
                seen = {"tick": 0}
            if seen["tick"] >= 1 and not str(seen["reason"]).startswith("hold"):
                return
            time.sleep(0.1)
    raise AssertionError(f"the sidecar did not decide within {START_TIMEOUT_S:g} s:\n{log.read_text()[-4000:]}")
