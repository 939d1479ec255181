import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.samples import NOW_S
from themis_triton.commands.down_command import down_command
from themis_triton.commands.status_command import show, status_command
from themis_triton.core.address import Address
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.settings import load_runtime_paths, load_settings
from themis_triton.settings.starter import starter


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A service on a free port that answers everything with the body; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the tests' standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_sentences_with_brackets_are_shown_as_they_are() -> None:
    said = "E1 [/usr/lib/x.cc:7] [bold]failed[/red]"
    status = {"policy": "themis", "mode": "active", "sentence": said, "pipelines": [], "servers": []}
    console = Console(file=io.StringIO(), width=200)
    show(
        status | {"stale": {"a": said}, "routes_unwritten": said, "events": [{"at_s": NOW_S, "decision_id": "d", "sentence": said}]},
        console,
    )
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count(said) == 4


def test_whatever_holds_it_back_and_how_fresh_it_is_are_shown() -> None:
    console = Console(file=io.StringIO(), width=200)
    status = {"policy": "themis", "mode": "active", "sentence": "steady", "pipelines": [], "servers": [], "events": []}
    troubles = {
        "paused": True,
        "pid": 4711,
        "at_s": NOW_S,
        "tick_errors": 3,
        "clamps": [{"kind": "devices", "sentence": "no slot"}, {"kind": "memory", "sentence": "no room"}],
        "held": {"a/m": NOW_S + 7.0},
        "journal_trouble": "the journal is not written: disk full",
    }
    show(status | troubles, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "paused: nothing is changed until `themis resume`" in text
    assert "pid 4711, last tick" in text
    assert "3 failed ticks" in text
    assert "the journal is not written: disk full" in text
    assert "limited: no slot\nlimited: no room\nin back-off after a failure: a/m, for 7 s more\n" in text


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"name": "triton"}', b"\xff"])
def test_an_answer_that_is_no_status_is_named(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    with answering(body) as address:
        path.write_text(f"{starter()}status: {{address: {address}}}\n")
        with pytest.raises(ServerError, match=rf"status\.address: {address} is not a Themis status endpoint"):
            status_command(path, as_json=False)


def test_a_file_that_is_no_longer_valid_still_tells_where_its_sidecar_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text("modles: {}\nstate_directory: here\nstatus: {address: 127.0.0.1:4711}\n")
    with pytest.raises(SettingsError):
        load_settings(path)
    where = load_runtime_paths(path)
    assert (where.state_directory, where.status_address) == (tmp_path / "here", Address("127.0.0.1", 4711))
    down_command(path)
    assert capsys.readouterr().out == f"nothing was running with {tmp_path / 'here'}\n"


def test_whereabouts_of_a_valid_file_are_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(starter())
    config, where = load_settings(path), load_runtime_paths(path)
    assert (where.state_directory, where.status_address) == (config.state_directory, config.status.address)


@pytest.mark.parametrize("text", ["state_directory: 3\n", "status: {address: nowhere}\n", "status:\n", "state_directory: [\n", ""])
def test_what_down_and_status_need_must_be_right(text: str, tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="1 error"):
        load_runtime_paths(path)
