"""Whatever the files of the state directory hold, reading them is a value or an error that names the file."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import action, config, record, server, snapshot
from themis_triton.adapters.envoy.current_routes import read_current_routes
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal, _thin
from themis_triton.adapters.store.records import packed, unpacked
from themis_triton.commands.history_command import history_command
from themis_triton.commands.why_command import why_command
from themis_triton.core.action import ActionKind
from themis_triton.core.address import Address
from themis_triton.core.encoding import plain, remembered_servers
from themis_triton.core.errors import ThemisError
from themis_triton.core.fleet import Server

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
RECORD: dict[str, Any] = json.loads(unpacked(_thin(record(action(ActionKind.GROW), seen=snapshot([server("a")])))))
CELL = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=40)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, item in items for each in paths_in(item, (*path, key)))]


def with_value(value: Any, path: tuple[Any, ...], changed: Any) -> Any:
    if not path:
        return changed
    first, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = with_value(value[first], tuple(rest), changed)
    return copy


def run(folder: Path, rows: list[tuple[Any, ...]], outcomes: list[tuple[Any, ...]], servers: list[tuple[Any, ...]]) -> list[Server]:
    """Each command that reads the journal, and the next sidecar's journal; returns the servers that this one remembers.

    An error that is none of Themis' own fails the test.
    """
    path = folder / "themis.yaml"
    path.write_text("state_directory: state\n")
    Journal(folder / "state" / "journal.sqlite").close()
    db = sqlite3.connect(folder / "state" / "journal.sqlite")
    with db:
        db.executemany("insert into ticks (at_s, decision_id, reason, changed, sentence, record) values (?, ?, ?, ?, ?, ?)", rows)
        db.executemany(
            "insert into outcomes (action_id, ended_at_s, kind, outcome, duration_s, sentence, detail) values (?, ?, ?, ?, ?, ?, ?)",
            outcomes,
        )
        db.executemany("insert or replace into servers values (?, ?)", servers)
    db.close()
    with suppress(ThemisError):
        why_command(path, None, as_json=False)
    with suppress(ThemisError):
        why_command(path, "d", as_json=True)
    with suppress(ThemisError):
        history_command(path, "9000d", 50, every=True, as_json=False)
    journal = Journal(folder / "state" / "journal.sqlite")
    try:
        return list(journal.load_servers())
    finally:
        journal.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CELL, CELL, CELL, st.just(1) | CELL, CELL, CELL), max_size=2),
    st.lists(st.tuples(*[CELL] * 7), max_size=2),
    st.lists(st.tuples(CELL, CELL), max_size=2),
)
def test_any_rows_of_the_journal_are_read_or_refused(rows: list[Any], outcomes: list[Any], servers: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert len(run(Path(folder), rows, outcomes, servers)) <= len(servers)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(paths_in(RECORD)), JSON)
def test_any_change_of_a_record_is_shown_or_refused(path: tuple[Any, ...], changed: Any) -> None:
    text = json.dumps(with_value(RECORD, path, changed))
    with tempfile.TemporaryDirectory() as folder:
        assert run(Path(folder), [(1.7e9, "d", "surge", 1, "surge", packed(text))], [], []) == []


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(paths_in(plain(server("a", slot="cpu:1")))), JSON)
def test_any_change_of_a_remembered_server_is_taken_or_left_out(path: tuple[Any, ...], changed: Any) -> None:
    text = json.dumps(with_value(plain(server("a", slot="cpu:1")), path, changed))
    with tempfile.TemporaryDirectory() as folder:
        remembered = run(Path(folder), [], [], [("a", text)])
    # What is taken is whole: written again, it reads as the same server.
    assert remembered_servers([json.dumps(plain(each)) for each in remembered]) == tuple(remembered)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_any_file_of_envoy_is_read_or_says_nothing(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "eds").mkdir()
        (directory / "eds" / "a.json").write_text(json.dumps({"resources": [content, {"cluster_name": "a", "endpoints": content}]}))
        envoy = replace(config().envoy, directory=directory, admin_address=Address("127.0.0.1", free_ports(1)[0]))
        assert not asyncio.run(read_current_routes(envoy)).lead_to(server("a"))
