"""Whose process listens at an address: the token of the status API goes to the sidecar alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from themis_triton.adapters.listener_owner import listener_users
from themis_triton.adapters.token_file import make_token
from themis_triton.commands import status_calls
from themis_triton.commands.status_calls import Remote, change, read
from themis_triton.core.address import Address
from themis_triton.core.errors import EnvironmentCheckError, ServerError
from themis_triton.settings.runtime import RuntimePaths

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:23DC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 1 1 0 100 0 0 10 0
   1: 0100007F:23DC 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1002        0 1 1 0 100 0 0 10 0
   2: 00000000:23DD 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1003        0 1 1 0 100 0 0 10 0
   3: 0200007F:23DC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1004        0 1 1 0 100 0 0 10 0
"""
TABLE_6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout
   0: 00000000000000000000000001000000:23DC 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1005        0
   1: 00000000000000000000000000000000:23DE 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1006        0
   2: 0000000000000000FFFF00000100007F:23DF 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1007        0
"""


@pytest.mark.parametrize(
    ("address", "users"),
    [
        ("127.0.0.1:9180", {1001}),
        ("localhost:9180", {1001}),
        ("127.0.0.1:9181", {1003}),
        ("[::1]:9180", {1005}),
        ("127.0.0.1:9182", {1006}),
        ("127.0.0.1:9183", {1007}),
        ("127.0.0.1:9184", set()),
        ("10.0.0.1:9181", set()),
    ],
)
def test_the_users_of_listening_sockets_are_those_of_the_kernels_tables(address: str, users: set[int], tmp_path: Path) -> None:
    (tmp_path / "self/net").mkdir(parents=True)
    (tmp_path / "self/net/tcp").write_text(TABLE)
    (tmp_path / "self/net/tcp6").write_text(TABLE_6)
    assert listener_users(Address.parse(address), tmp_path) == users


def test_a_listener_of_this_process_is_its_users() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
        assert listener_users(address) == {os.geteuid()}
    assert listener_users(address) == set()


def test_the_token_goes_to_no_other_user_that_listens_while_the_sidecar_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, token = tmp_path / "themis.yaml", tmp_path / ".themis" / "token"
    settings.write_text("status: {address: '127.0.0.1:1'}\n")
    make_token(token)
    where = RuntimePaths(tmp_path / ".themis", Address("127.0.0.1", 1), token)
    cases = ((4711, EnvironmentCheckError, "user 4711 of this machine listens"), (os.geteuid(), ServerError, "no response"))
    for user, error, words in cases:
        monkeypatch.setattr(status_calls, "listener_users", lambda _, user=user: {user})
        with pytest.raises(error, match=words):
            change(settings, "/v1/pause")
        with pytest.raises(error, match=words):
            read(where, "/v1/status", Remote(token_file=token))
