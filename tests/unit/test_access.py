"""Who may change a running sidecar over its status API."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.unit.fakes import FakeClock
from tests.unit.samples import NOW_S, config
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.exposure import readable_secrets
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.token_file import make_token, read_token
from themis_triton.commands.settings_commands import validate_command
from themis_triton.commands.status_calls import Remote, change
from themis_triton.commands.status_command import fetch_status
from themis_triton.commands.stop_command import pause_command, resume_command
from themis_triton.core.address import Address
from themis_triton.core.errors import EnvironmentCheckError, ServerError, ThemisError
from themis_triton.daemon.access import Access
from themis_triton.daemon.api import serving
from themis_triton.daemon.control import is_paused
from themis_triton.daemon.control_api import control_routes
from themis_triton.daemon.status import StatusBoard
from themis_triton.settings import load_settings
from themis_triton.settings.starter import starter

JSON = {"Content-Type": "application/json"}
NOT_ASCII = httpx.Headers({b"Content-Type": b"application/json", b"Authorization": b"Bearer \xff\xfe"})


@asynccontextmanager
async def api(state: Path, access: Access) -> AsyncIterator[tuple[Address, asyncio.Event]]:
    """A status API with the calls that change something; yields its address and the event of a reload."""
    address, reload = Address("127.0.0.1", free_ports(1)[0]), asyncio.Event()
    board = StatusBoard(config(), NOW_S)
    async with serving(address, board, Exporter(), FakeClock(), access, control_routes(state, reload)):
        yield address, reload


def test_only_the_token_and_a_json_body_change_anything(tmp_path: Path) -> None:
    file = tmp_path / "token"
    make_token(file)
    token = read_token(file)
    right = {"Authorization": f"Bearer {token}"}

    async def scenario() -> None:
        async with api(tmp_path, Access(file)) as (address, reload), httpx.AsyncClient(trust_env=False, base_url=address.url()) as client:
            for headers, status, reason in (
                (JSON, 401, "a token is needed"),
                (JSON | {"Authorization": "Basic YTpi"}, 401, "a token is needed"),
                (JSON | {"Authorization": f"Bearer {token[:-1]}"}, 403, "the token is not that of"),
                (
                    httpx.Headers({b"Content-Type": b"application/json", b"Authorization": b"Bearer \xff\xfe"}),
                    403,
                    "the token is not that of",
                ),
                (right | {"Content-Type": "text/plain"}, 415, "expected Content-Type: application/json"),
            ):
                for path in ("/v1/pause", "/v1/reload", "/v1/of-another-feature"):
                    refused = await client.post(path, headers=headers, content="{}")
                    assert refused.status_code == status
                    assert reason in refused.json()["error"]
                    assert token not in refused.text
            assert not is_paused(tmp_path)
            assert not reload.is_set()
            for host in (str(address), "localhost", f"LOCALHOST:{address.port}", "[::1]:80"):
                assert (await client.get("/v1/status", headers={"Host": host})).status_code == 200
            for host in ("evil.example", f"evil.example:{address.port}", "127.0.0.1.evil.example"):
                answer = await client.get("/v1/status", headers={"Host": host})
                assert (answer.status_code, "localhost" in answer.json()["error"]) == (421, True)
                assert (await client.get("/v1/status", headers=right | {"Host": host})).status_code == 200
            assert (await client.post("/v1/pause", headers=right, json={})).json() == {"paused": True, "was_paused": False}
            assert is_paused(tmp_path)
            assert (await client.post("/v1/reload", headers=right, json={})).status_code == 202
            assert reload.is_set()
            file.write_text("replaced-0123456789\n")
            assert (await client.post("/v1/resume", headers=right, json={})).status_code == 403
            again = {"Authorization": "Bearer replaced-0123456789"}
            assert (await client.post("/v1/resume", headers=again, json={})).json() == {"paused": False, "was_paused": True}
            file.unlink()
            assert (await client.post("/v1/pause", headers=again, json={})).status_code == 503

    asyncio.run(scenario())


def test_reads_from_other_machines_need_the_token_but_for_liveness(tmp_path: Path) -> None:
    file = tmp_path / "token"
    make_token(file)

    async def scenario() -> None:
        access = Access(file, open_reads=False)
        async with api(tmp_path, access) as (address, _), httpx.AsyncClient(trust_env=False, base_url=address.url()) as client:
            for path in ("/v1/status", "/v1/nothing", "/metrics"):
                assert (await client.get(path)).status_code == 401
                assert (await client.get(path, headers={"Authorization": f"Bearer {read_token(file)}"})).status_code in (200, 404)
            for path in ("/healthz", "/", "/page/main.js"):  # the page asks for the token itself
                assert (await client.get(path)).status_code == 200
            for path in ("/page/../v1/status", "/page/%2e%2e/v1/status", "/page//v1/status", "/page/v1/status"):
                assert await raw_status(address, path) in (401, 404)

    asyncio.run(scenario())


async def raw_status(address: Address, path: str) -> int:
    """The status of a GET whose path no client has simplified."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


@contextmanager
def sidecar(folder: Path, access: Access) -> Iterator[Path]:
    """A status API in the background; yields settings with its address, as those of another machine."""
    path = folder / "elsewhere.yaml"

    async def serve(started: asyncio.Event, stop: asyncio.Event) -> None:
        async with api(folder / "state", access) as (address, _):
            path.write_text(f"{starter()}state_directory: none\nstatus: {{address: '{address}'}}\n")
            started.set()
            await stop.wait()

    with asyncio.Runner() as runner:
        loop, started, stop = runner.get_loop(), asyncio.Event(), asyncio.Event()
        task = loop.create_task(serve(started, stop))
        loop.run_until_complete(asyncio.wait_for(started.wait(), 5))
        thread = threading.Thread(target=loop.run_until_complete, args=(task,))
        thread.start()
        try:
            yield path
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def test_the_commands_reach_a_sidecar_of_another_machine_with_its_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    make_token(token)
    make_token(wrong)
    with sidecar(tmp_path, Access(token, open_reads=False)) as path:
        pause_command(path, Remote(token))
        assert is_paused(tmp_path / "state")
        resume_command(path, Remote(token))
        assert capsys.readouterr().out.splitlines()[1].startswith("resumed: ")
        assert fetch_status(path, Remote(token)).policy == "themis"
        for call in (
            lambda: fetch_status(path),
            lambda: fetch_status(path, Remote(wrong)),
            lambda: change(path, "/v1/pause", remote=Remote(wrong)),
        ):
            with pytest.raises(ServerError, match=r"refused \(HTTP 40[13]\): .*Fix: give a copy of the sidecar's token with --token-file"):
                call()
        with pytest.raises(
            EnvironmentCheckError, match=r"none/token: .* Fix: start the sidecar \(`themis run -c .*, or run this command as its user"
        ):
            change(path, "/v1/pause")
        with pytest.raises(ServerError, match=r"refused \(HTTP 404\)"):
            change(path, "/v1/nothing", remote=Remote(token))


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("0123456789abcdef", 0o604, "any user of this machine can use it .mode 0604.: expected 0600. Fix: chmod 600"),
        ("short", 0o600, "there is no token in it"),
        ("two words that are long", 0o600, "there is no token in it"),
        ("ümlauts-are-not-allowed", 0o600, "there is no token in it"),
    ],
)
def test_a_token_that_others_can_read_or_guess_is_refused(content: str, mode: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(EnvironmentCheckError, match=words) as refused:
        read_token(file)
    assert content not in str(refused.value)


def test_a_token_is_made_once_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "token"
    make_token(file)
    first = read_token(file)
    make_token(file)
    assert (read_token(file), file.stat().st_mode & 0o777, len(first)) == (first, 0o600, 43)
    assert [each.name for each in file.parent.iterdir()] == ["token"]
    with pytest.raises(ThemisError, match="cannot be written"):
        make_token(file / "below")


def test_validate_tells_who_can_reach_the_status_api(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(f"{starter()}status: {{address: '0.0.0.0:9180', allow_non_loopback: true}}\n")
    assert validate_command(path, live=False, as_json=False) == 0
    assert "its token, which they need, travels unencrypted" in capsys.readouterr().out
    (tmp_path / "key").write_text("no")
    path.write_text(f"{starter()}status: {{token_file: key}}\n")
    assert validate_command(path, live=False, as_json=False) == 3
    path.write_text(f"{starter()}status: {{token_file: absent}}\n")
    assert validate_command(path, live=False, as_json=False) == 2
    assert "absent does not exist" in capsys.readouterr().out


def test_validate_tells_of_secrets_that_all_users_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # unlike pytest's own folders one below that others may open
        path = Path(folder) / "themis.yaml"
        path.write_text(starter().replace("    device: gpu:0\n", "    device: gpu:0\n    model_control_key: k\n"))
        for private, (folder_mode, mode) in ((True, (0o700, 0o644)), (True, (0o755, 0o640)), (False, (0o755, 0o644))):
            Path(folder).chmod(folder_mode)
            path.chmod(mode)
            found = [finding.what for finding in readable_secrets(load_settings(path), path)]
            assert found == ([] if private else ["servers.triton.model_control_key"])
        assert validate_command(path, live=False, as_json=False) == 0
        assert f"any user of this machine can read it in {path}" in capsys.readouterr().out
