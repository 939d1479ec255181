"""Names and errors from outside are shown, and do not control the terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import NOW_S, action, record, server, snapshot
from tests.unit.test_status_command import BASE
from themis_triton.adapters.store.journal import Journal
from themis_triton.commands.run_command import configure_logging
from themis_triton.commands.status_command import show
from themis_triton.commands.terminal import TerminalConsole
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.printable import printable

EVIL = "a\x1b]0;owned\x07\x1b[2Jb\x9b31m\u202e\r"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_printable_stays_and_all_else_is_escaped(text: str) -> None:
    shown = printable(text)
    assert UNSAFE.search(shown) is None
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
    assert shown == text or len(shown) > len(text)


def test_errors_keep_their_lines() -> None:
    assert printable("log x, last lines:\n\ta\x1b[0m") == "log x, last lines:\n\ta\\x1b[0m"


def test_tables_and_lines_are_escaped_and_keep_their_colours() -> None:
    file = io.StringIO()
    console = TerminalConsole(file=file, force_terminal=True, color_system="standard", width=200)
    console.print(f"[red]{EVIL}[/red]", soft_wrap=True, highlight=False)
    assert "\x1b[31m" in file.getvalue()
    assert "a\\x1b]0;owned" in file.getvalue()
    assert "\x1b]" not in file.getvalue()


def test_a_status_with_such_names_is_escaped() -> None:
    file = io.StringIO()
    status = replace(BASE, sentence=EVIL, faults=(EVIL,), servers=(replace(server("x"), name=EVIL),))
    show(status, TerminalConsole(file=file, width=300), NOW_S)
    assert file.getvalue().count("\\x1b]0;owned") == 3
    assert UNSAFE.search(file.getvalue()) is None


@pytest.mark.parametrize("words", [("history", "--since", "9000d"), ("why",), ("status",), ("validate", "{path}")])
def test_commands_print_no_control_characters(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(f"state_directory: {json.dumps(EVIL)}\nstatus: {{address: '127.0.0.1:9'}}\nmodels: {{{json.dumps(EVIL)}: 3}}\n")
    journal = Journal(tmp_path / EVIL / "journal.sqlite")
    moved = replace(action(ActionKind.GROW), server=EVIL)
    journal.record_tick(record(moved, seen=snapshot([server("a")])))
    journal.record_outcome(Outcome(moved, OutcomeKind.REFUSED, NOW_S, NOW_S, EVIL))
    journal.close()
    arguments = [word.format(path=path) for word in words] + ([] if words[0] == "validate" else ["-c", str(path)])
    ended = subprocess.run([sys.executable, "-m", "themis_triton.cli", *arguments], capture_output=True, timeout=60, check=False)
    output = (ended.stdout + ended.stderr).decode()
    assert "owned" in output or words[0] == "status"
    assert UNSAFE.search(output) is None


class Terminal(io.StringIO):
    """What says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_log_lines_on_a_terminal_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging()
    structlog.get_logger().warning("server_crashed", server=EVIL, message=EVIL)
    assert terminal.getvalue().count("\\x1b]0;owned") == 2
    assert "\x1b]" not in terminal.getvalue()
