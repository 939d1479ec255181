import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.samples import NOW_S, record, server
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.commands import down_command as down
from themis_triton.commands.down_command import down_command
from themis_triton.commands.status_command import show, status_command
from themis_triton.core.address import Address
from themis_triton.core.attainment import EndedRequests, slo_window
from themis_triton.core.decision import Clamp, ClampKind, PipelineEvidence
from themis_triton.core.encoding import plain
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.fleet import ModelState
from themis_triton.core.status import (
    STATUS_VERSION,
    NodesStatus,
    NodeTypeStatus,
    PipelineStatus,
    Status,
    StatusEvent,
    UsageStatus,
    decode_status,
)
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


def test_a_limit_that_refuses_requests_is_shown() -> None:
    evidence = PipelineEvidence("video", 151.0, 120.0, 92.0, 300.0, None, None, 1, 1, limit_rps=92.0)
    calm, refusing = (
        shown(replace(BASE, pipelines=(PipelineStatus("video", (), 300.0, 99.0, evidence=replace(evidence, refused_rps=refused)),)))
        for refused in (0.0, 59.0)
    )
    assert "admission" not in calm
    assert "admission: video refuses 59/s, because its servers carry 92/s inside the SLO" in refusing.replace("\n", " ")


BASE = Status(STATUS_VERSION, "1.0", 4711, NOW_S - 60.0, "active", "themis", paused=False, sentence="steady")


def shown(status: Status) -> str:
    """What `themis status` prints on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    show(status, console, NOW_S + 2.0)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_sentences_with_brackets_are_shown_as_they_are() -> None:
    message = "E1 [/usr/lib/x.cc:7] [bold]failed[/red]"
    status = replace(BASE, sentence=message, stale={"a": message}, routes_unwritten=message, events=(StatusEvent(NOW_S, "d", (), message),))
    assert shown(status).count(message) == 4


def test_node_types_have_their_price_what_is_free_and_the_age_of_that() -> None:
    spot = NodeTypeStatus("spot", 0.4, 6, 4, 2, {"gpu": 8.0}, {"gpu": 0.0}, 0)
    nodes = NodesStatus((spot, NodeTypeStatus("on-demand", 1.2, 4, 0)), NOW_S - 38.0, "no answer within 20 s")
    text = shown(replace(BASE, nodes=nodes))
    assert "Node types, nodes as of 40 s ago: no answer within 20 s" in text
    rows = [line.split() for line in text.splitlines() if line.split()[:1] in (["spot"], ["on-demand"])]
    assert rows == [["spot", "0.4", "4", "of", "6", "2", "0", "of", "8", "gpu", "0"], ["on-demand", "1.2", "0", "of", "4", "–", "–", "–"]]


def test_whatever_limits_it_and_how_fresh_it_is_are_shown() -> None:
    text = shown(
        replace(
            BASE,
            paused=True,
            at_s=NOW_S,
            tick_errors=3,
            clamps=(Clamp(ClampKind.DEVICES, "no slot"), Clamp(ClampKind.MEMORY, "no room")),
            backing_off={"a/m": NOW_S + 7.0},
            resting={"cpu:1": "warm-up of model m failed 3 times"},
            journal_trouble="the journal is not written: disk full",
            settings_edited="the settings file differs: mode",
            busy=("a/m",),
            next_steps=("grow m on a 1→2",),
            cost_per_s=3.5,
            usage=UsageStatus(cost=120.0),
            events=(StatusEvent(NOW_S - 118.0, "d", ("grow",), "grown"),),
        )
    )
    assert "paused: nothing is changed until `themis resume`" in text
    assert "pid 4711, last tick 2.0 s ago, 3 failed ticks; cost 3.5 price units a second, 120 since start" in text
    assert "the journal is not written: disk full\nthe settings file differs: mode\n" in text
    assert (
        "limited: no slot\nlimited: no room\nin back-off after a failure: a/m, for 7 s more\ncpu:1: warm-up of model m failed 3 times\n"
        in text
    )
    assert "under way: a/m\nnext: grow m on a 1→2\n" in text
    assert " (2 m ago)  d  grown" in text


ATTAINED = slo_window(EndedRequests(10_000.0, 1_230.0), 99.0)


def test_twenty_pipelines_are_twenty_whole_rows_in_eighty_columns() -> None:
    def pipeline(number: int) -> PipelineStatus:
        estimate = PipelineEstimate("p", 1234.0, 0.0, 0.0, 0.0, 0.0, 301.0 if number == 7 else 250.0)
        evidence = PipelineEvidence("p", 1.0, 1.0, 4567.0, 300.0, 250.0, None, 2, 3)
        return PipelineStatus(
            f"pipeline-{number}", ("m",), 300.0, 99.0, estimate, evidence, number == 7, slo_hour=ATTAINED, slo_day=ATTAINED
        )

    text = shown(replace(BASE, reason="scale_out", sentence="; ".join(["long"] * 200), pipelines=tuple(map(pipeline, range(20)))))
    assert "scale out; 1 of 20 pipelines exceeds its SLO now\n" in text
    assert max(map(len, text.splitlines())) <= 80
    for number in range(20):
        assert re.search(rf"pipeline-{number} +1234 +4567 +{301 if number == 7 else 250}/300 +–/12/12 % +-1130 % +2→3", text)


@pytest.mark.parametrize(
    ("units", "heading"), [((), "servers"), (("server",), "servers"), (("device", "device"), "devices"), (("server", "device"), "places")]
)
def test_the_column_of_a_pipelines_size_says_what_it_counts(units: tuple[str, ...], heading: str) -> None:
    evidences = [PipelineEvidence("p", 1.0, 1.0, 9.0, 300.0, None, None, 2, 3, unit=unit) for unit in units]
    pipelines = tuple(PipelineStatus("p", ("m",), 300.0, 99.0, None, evidence) for evidence in (*evidences, None))
    assert re.search(rf"late 1m/1h/24h +budget +{heading} *\n", shown(replace(BASE, pipelines=pipelines)))


def test_a_server_is_shown_with_the_devices_that_it_runs_on_and_its_instances_on_each() -> None:
    alone = replace(server("alone"), models={"m": ModelState(2, 8)})
    spread = ModelState(0, 8).spread_over({"gpu:0": 2, "gpu:2": 1})
    wide = replace(server("wide"), device="gpu:0", reach=("gpu:1", "gpu:2"), models={"m": spread})
    text = shown(replace(BASE, servers=(alone, wide)))
    assert re.search(r"alone +serving +cpu:0 +m 2 ", text)
    assert re.search(r"wide +serving +gpu:0, gpu:2 +m 3 \(gpu:0 2, gpu:2 1\) ", text)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"name": "triton"}', b"\xff"])
def test_an_answer_that_is_no_status_is_named(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    with answering(body) as address:
        path.write_text(f"{starter()}status: {{address: {address}}}\n")
        with pytest.raises(ServerError, match=rf"status\.address: {address} is not a Themis status endpoint"):
            status_command(path, as_json=False)


def test_a_status_of_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    with answering(b'{"status_version": 2}') as address:
        path.write_text(f"status: {{address: {address}}}\n")
        with pytest.raises(ServerError, match=r"status version 2 is not supported: expected 1\. Fix: install the same version"):
            status_command(path, as_json=False)


def test_a_status_is_printed_as_it_was_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    with answering(json.dumps(plain(BASE)).encode()) as address:
        path.write_text(f"status: {{address: {address}}}\n")
        status_command(path, as_json=True)
    assert decode_status(json.loads(capsys.readouterr().out)) == BASE


def test_a_file_that_is_no_longer_valid_still_tells_where_its_sidecar_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text("modles: {}\nstate_directory: here\nstatus: {address: 127.0.0.1:4711}\n")
    with pytest.raises(SettingsError):
        load_settings(path)
    where = load_runtime_paths(path)
    assert (where.state_directory, where.status_address) == (tmp_path / "here", Address("127.0.0.1", 4711))
    down_command(path)
    assert capsys.readouterr().out == f"nothing was running with {tmp_path / 'here'}\n"


def test_servers_that_were_stopped_with_all_the_rest_are_not_taken_for_lost_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "themis.yaml", tmp_path / "here" / "journal.sqlite"
    path.write_text("state_directory: here\n")
    journal = Journal(file)
    journal.record_tick(record())
    journal.save_server(server("cpu-0-a"))
    journal.close()
    monkeypatch.setattr(down, "stop_all", fails)
    with pytest.raises(ServerError, match="is left"):
        down_command(path)
    assert remembered(file) == ["cpu-0-a"]
    monkeypatch.undo()
    down_command(path)
    assert remembered(file) == []
    with reading(file) as reader:
        assert len(reader.ticks(9)) == 1
    file.write_bytes(b"not a journal")
    down_command(path)  # What it finds there is for the next sidecar to report.


async def fails(_: Path) -> tuple[str, ...]:
    raise ServerError("a server is left")


def remembered(file: Path) -> list[str]:
    with reading(file) as reader:
        return [each.name for each in reader.servers()]


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


def test_a_models_name_is_shown_as_it_is() -> None:
    held = replace(server("a"), models={"[x] ü": ModelState(2, 8)})
    assert "[x] ü 2" in shown(replace(BASE, at_s=NOW_S, servers=(held,)))
