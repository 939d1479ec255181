"""Calls of the status API of a running sidecar, with the token where one is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from themis_triton.adapters.listener_owner import listener_users
from themis_triton.adapters.status_client import StatusResponse, get, post
from themis_triton.adapters.token_file import read_token
from themis_triton.core.address import Address
from themis_triton.core.encoding import parsed_json
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.settings.runtime import RuntimePaths, load_runtime_paths

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Remote:
    """How to reach a sidecar on another machine: a copy of its token, and with TLS the authority of its certificate.

    `identity`: a file with a client certificate and its key, for a sidecar on this machine too.
    """

    token_file: Path | None = None
    ca: Path | None = None
    identity: Path | None = None

    @property
    def given(self) -> bool:
        """Whether the sidecar is asked by a call, because it may run elsewhere."""
        return self.token_file is not None

    def address(self, address: Address) -> Address:
        """The status address of the settings, with TLS if the authority is given, and with the client certificate."""
        own = str(self.identity) if self.identity is not None else None
        if self.ca is not None:
            return replace(address, tls=True, ca=str(self.ca), server_name=address.host, certificate=own, key=own)
        return replace(address, certificate=own, key=own) if address.tls else address


LOCAL = Remote()


class ServerRefusedError(ServerError):
    """The sidecar answers, and refuses."""


def read(where: RuntimePaths, api_path: str, remote: Remote = LOCAL) -> StatusResponse:
    """The answer to a GET. A token goes along if its file is given, or the address may be that of another machine.

    Raises:
        ServerError: nothing answers; ServerRefusedError: the sidecar refuses the token.
        EnvironmentCheckError: the given file has no token.
    """
    token = read_token(remote.token_file) if remote.token_file is not None else None
    if token is None and not where.status_address.is_loopback and where.token_file.exists():
        token = read_token(where.token_file)
    if token is not None:
        _refuse_strangers(where)
    response = get(remote.address(where.status_address), api_path, token=token)
    if response.code in _REFUSED:
        raise _refused(where, response)
    return response


def change(path: Path, api_path: str, body: Mapping[str, object] | None = None, remote: Remote = LOCAL) -> Mapping[str, object]:
    """POST a JSON object to the sidecar of these settings, and return the JSON object that it answers.

    Args:
        path: the settings file, which names the address, and by default the token's file.
        api_path: such as `/v1/pause`.
        body: the object; by default an empty one.
        remote: for a sidecar that runs elsewhere.

    Raises:
        ServerError: nothing answers; ServerRefusedError: the sidecar refuses, with its reason.
        EnvironmentCheckError: there is no token to read.
    """
    where = load_runtime_paths(path)
    try:
        token = read_token(remote.token_file if remote.token_file is not None else where.token_file)
    except EnvironmentCheckError as error:
        fix = f"start the sidecar (`themis run -c {path}`), or run this command as its user on its host, or with --token-file"
        raise EnvironmentCheckError(f"{error}. Fix: {fix}") from error
    _refuse_strangers(where)
    response = post(remote.address(where.status_address), api_path, token, body)
    if response.code >= HTTPStatus.BAD_REQUEST:
        raise _refused(where, response)
    try:
        answer = parsed_json(response.body)
    except ValueError as error:
        raise ServerError(f"status.address: {where.status_address} answered {api_path} with {response.body[:80]!r}") from error
    return answer if isinstance(answer, dict) else {}


def _refuse_strangers(where: RuntimePaths) -> None:
    """Raise EnvironmentCheckError where another user of this machine listens at the status address: it would get the token."""
    trusted = {0, os.geteuid(), *(path.stat().st_uid for path in (where.state_directory, where.token_file) if path.exists())}
    strangers = sorted(listener_users(where.status_address) - trusted)
    if strangers:
        words = f"status.address: user {strangers[0]} of this machine listens at {where.status_address}, not the sidecar's user"
        raise EnvironmentCheckError(f"{words}: the token is not sent. Fix: end that process (`ss -ltnp`), and start the sidecar")


def _refused(where: RuntimePaths, response: StatusResponse) -> ServerRefusedError:
    try:
        reason = str(parsed_json(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        reason = repr(response.body[:80])
    fix = ". Fix: give a copy of the sidecar's token with --token-file" if response.code in _REFUSED else ""
    return ServerRefusedError(f"status.address: {where.status_address} refused (HTTP {response.code}): {reason}{fix}")
