"""What `themis run` does beside the daemon: its log, and what it refuses before anything is started."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from tests.unit.samples import config
from themis_triton.commands.options import LogFormat
from themis_triton.commands.run_command import configure_logging
from themis_triton.core.address import Address
from themis_triton.core.config import StatusConfig
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.lock import BEAT_FILE
from themis_triton.daemon.service import run_daemon
from themis_triton.daemon.settings_watch import SettingsFile


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


def test_a_status_address_that_is_taken_ends_the_start_before_envoy_or_a_server_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("127.0.0.1", other.getsockname()[1])
        settings = replace(config(), state_directory=tmp_path, status=StatusConfig(address=address))
        with pytest.raises(EnvironmentCheckError, match=rf"status.address: {address} is not available .* Fix: stop what listens there"):
            asyncio.run(run_daemon(settings, SettingsFile(lambda: settings, tuple)))
    assert {path.name for path in tmp_path.iterdir()} <= {"themis.lock", BEAT_FILE}
