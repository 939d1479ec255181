"""An Envoy with TLS before the plain HTTP ports of a server, as users put one before Triton's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.triton_process import free_ports

TYPE = "type.googleapis.com/envoy.extensions"
Json = dict[str, Any]


@contextmanager
def tls_front(folder: Path, targets: Sequence[int], tls: Mapping[str, str]) -> Iterator[list[int]]:
    """The ports of `localhost` that lead to these; a client needs a certificate of the authority."""
    folder.mkdir()
    ports = free_ports(len(targets))
    pairs = list(zip(ports, targets, strict=True))
    static = {"listeners": [_listener(*pair, tls) for pair in pairs], "clusters": [_cluster(target) for target in targets]}
    file = folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": static}))
    command = [str(Path(sys.executable).parent / "envoy"), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield ports
        finally:
            process.terminate()
            process.wait(20)


def _listener(port: int, target: int, tls: Mapping[str, str]) -> Json:
    own = {"certificate_chain": {"filename": tls["certificate"]}, "private_key": {"filename": tls["key"]}}
    context = {
        "@type": f"{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [own], "validation_context": {"trusted_ca": {"filename": tls["ca"]}}},
        "require_client_certificate": True,
    }
    proxy = {"@type": f"{TYPE}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "front", "cluster": str(target)}
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": context},
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
            }
        ],
    }


def _cluster(target: int) -> Json:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": target}}
    members = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {"name": str(target), "type": "STATIC", "load_assignment": {"cluster_name": str(target), "endpoints": members}}
