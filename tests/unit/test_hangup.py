"""SIGHUP reloads the settings, or ends a sidecar whose terminal is gone."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, fcntl, os, signal, sys, termios
from themis_triton.daemon.hangup import hangup_handler

async def main():
    fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "nohup" else signal.SIG_DFL)  # whatever the tests inherited
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hangup_handler(stop, reload))
    print("ready", flush=True)
    await asyncio.wait([asyncio.create_task(each.wait()) for each in (stop, reload)], return_when=asyncio.FIRST_COMPLETED)
    os.write(int(sys.argv[3]), b"stop" if stop.is_set() else b"reload")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("started", "closes", "expected"),
    [("", True, b"stop"), ("", False, b"reload"), ("nohup", True, b"reload")],
    ids=["closed", "kept", "nohup"],
)
def test_a_closed_terminal_ends_the_sidecar_that_was_started_on_it(started: str, closes: bool, expected: bytes) -> None:
    master, terminal = pty.openpty()
    reader, writer = os.pipe()
    command = [sys.executable, "-c", SCRIPT, str(terminal), started, str(writer)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(terminal, writer), start_new_session=True) as process:
        os.close(writer)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if closes:
            os.close(master)
            os.close(terminal)
        else:
            process.send_signal(signal.SIGHUP)
        assert os.read(reader, 100) == expected
        assert process.wait(10.0) == 0
    for each in (reader, *(() if closes else (master, terminal))):
        os.close(each)
