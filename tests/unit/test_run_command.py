"""What `themis run` does beside the daemon: its log."""

from __future__ import annotations

import errno
import io
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from themis_triton.commands.options import LogFormat
from themis_triton.commands.run_command import configure_logging


class FullDisk(io.StringIO):
    """A stream on a disk without room."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    before, handlers = structlog.get_config(), logging.root.handlers[:]
    yield
    structlog.configure(**before)
    logging.root.handlers[:] = handlers


@pytest.mark.usefixtures("_logging_restored")
def test_the_form_of_the_log_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    for chosen, expected in (
        (LogFormat.AUTO, '"event": "started"'),
        (LogFormat.JSON, '"event": "started"'),
        (LogFormat.CONSOLE, "started   "),
    ):
        configure_logging(chosen)
        structlog.get_logger().info("started", mode="active")
        assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("_logging_restored")
def test_a_log_on_a_full_disk_loses_lines_and_not_the_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk = FullDisk()
    monkeypatch.setattr(sys, "stderr", full_disk)
    configure_logging()
    log = structlog.get_logger()
    log.info("tick_completed", message="lost")
    full_disk.full = False
    log.info("tick_completed", message="written")
    assert '"message": "written"' in full_disk.getvalue()
    assert "lost" not in full_disk.getvalue()
