"""The live check of servers on other machines: who else can load and unload their models. Changes nothing."""

from __future__ import annotations

from dataclasses import replace

from tritonclient.utils import InferenceServerException

from themis_triton.adapters.findings import Finding, warning
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.triton.client import new_client
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer

NO_MODEL = "themis/no-such-model"
"""No model can have this name, so unloading it does nothing but show whether model control is open."""
_METHOD_NOT_ALLOWED = 405
_MUTUAL = "start it with --grpc-use-ssl=true and --grpc-use-ssl-mutual=true, and add `tls` with a `certificate` to its section"


async def check_remote_control(server: AdoptedServer, http: HttpClient, timeout_s: float) -> list[Finding]:
    """Warnings for model control that others can use or read; none for a server that only this machine reaches."""
    what, grpc = f"servers.{server.name}: model control", server.grpc_address
    findings = []
    if not grpc.is_loopback and await _is_open(grpc, timeout_s):
        found = f"any client that reaches {grpc.authority} can load and unload models: it asks for no key and for no client's certificate"
        findings.append(warning(what, found, _MUTUAL))
    elif not grpc.is_loopback and server.model_control_key is not None and not grpc.tls:
        findings.append(warning(what, f"its key travels unencrypted to {grpc}", _MUTUAL))
    if not server.http_address.is_loopback and await _is_open_by_rest(server.http_address, http):
        found = f"any client that reaches {server.http_address} can load and unload models over REST: it asks for no key and no certificate"
        remedy = (
            "start it with --http-restricted-api=model-repository:NAME=KEY and a key of your choice, which no client needs:"
            " Themis uses gRPC; or put a proxy that asks for clients' certificates before it"
        )
        findings.append(warning(what, found, remedy))
    return findings


async def _is_open(address: Address, timeout_s: float) -> bool:
    """Whether models can be unloaded without a key and without a client's certificate."""
    client = new_client(replace(address, certificate=None, key=None))
    try:
        await client.unload_model(NO_MODEL, client_timeout=timeout_s)
    except InferenceServerException:
        return False
    finally:
        await client.close()
    return True


async def _is_open_by_rest(address: Address, http: HttpClient) -> bool:
    """Whether the repository API answers without a key and a client's certificate: it refuses a GET for its method, and only then."""
    try:
        await http.get_at(replace(address, certificate=None, key=None), "/v2/repository/index")
    except HttpError as error:
        return error.status == _METHOD_NOT_ALLOWED
    return True
