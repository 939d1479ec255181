"""Calls of the status API of a running sidecar, with the token where one is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from themis_triton.adapters.status_client import StatusResponse, get, post
from themis_triton.adapters.token_file import read_token
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.settings.runtime import RuntimePaths, load_runtime_paths

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class ServerRefusedError(ServerError):
    """The sidecar answers, and refuses."""


def read(where: RuntimePaths, api_path: str, token_file: Path | None = None) -> StatusResponse:
    """The answer to a GET. A token goes along if its file is given, or the address may be that of another machine.

    Raises:
        ServerError: nothing answers; ServerRefusedError: the sidecar refuses the token.
        EnvironmentCheckError: the given file has no token.
    """
    token = read_token(token_file) if token_file is not None else None
    if token is None and not where.status_address.is_loopback and where.token_file.exists():
        token = read_token(where.token_file)
    response = get(where.status_address, api_path, token=token)
    if response.code in _REFUSED:
        raise _refused(where, response)
    return response


def change(path: Path, api_path: str, body: Mapping[str, object] | None = None, token_file: Path | None = None) -> Mapping[str, object]:
    """POST a JSON object to the sidecar of these settings, and return the JSON object that it answers.

    Args:
        path: the settings file, which names the address, and by default the token's file.
        api_path: such as `/v1/pause`.
        body: the object; by default an empty one.
        token_file: the token of a sidecar that runs elsewhere.

    Raises:
        ServerError: nothing answers; ServerRefusedError: the sidecar refuses, with its reason.
        EnvironmentCheckError: there is no token to read.
    """
    where = load_runtime_paths(path)
    try:
        token = read_token(token_file if token_file is not None else where.token_file)
    except EnvironmentCheckError as error:
        fix = "run this command as the sidecar's user on its host, or give a copy of its token with --token-file"
        raise EnvironmentCheckError(f"{error}. Fix: {fix}") from error
    response = post(where.status_address, api_path, token, body)
    if response.code >= HTTPStatus.BAD_REQUEST:
        raise _refused(where, response)
    try:
        answer = json.loads(response.body)
    except ValueError as error:
        raise ServerError(f"status.address: {where.status_address} answered {api_path} with {response.body[:80]!r}") from error
    return answer if isinstance(answer, dict) else {}


def _refused(where: RuntimePaths, response: StatusResponse) -> ServerRefusedError:
    try:
        reason = str(json.loads(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        reason = repr(response.body[:80])
    fix = ". Fix: give a copy of the sidecar's token with --token-file" if response.code in _REFUSED else ""
    return ServerRefusedError(f"status.address: {where.status_address} refused (HTTP {response.code}): {reason}{fix}")
