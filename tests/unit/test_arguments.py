"""Secrets in command lines are overwritten in the memory of the process that has read them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from themis_triton.adapters.arguments import hide_argument
from themis_triton.adapters.process_end import stop_process
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import spawn
from themis_triton.core.fleet import ProcessId

SECRET = "a-key-of-model-control"  # noqa: S105
PROGRAM = "import sys, time; key = sys.argv[1].partition('=')[2]; print(len(key), flush=True); time.sleep(60)"


def wait_for(path: Path, text: str) -> None:
    for _ in range(1000):
        if text in path.read_text():
            return
        asyncio.run(asyncio.sleep(0.02))
    raise AssertionError(path.read_text())


def test_a_secret_leaves_the_command_line_and_all_else_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, f"--key={SECRET}", f"--again={SECRET}", "last"]
    process = spawn(command, os.environ, tmp_path / "log")
    try:
        wait_for(tmp_path / "log", str(len(SECRET)))
        cmdline = Path(f"/proc/{process.pid}/cmdline")
        assert SECRET in cmdline.read_text()
        assert hide_argument(process, SECRET)
        stars = "*" * len(SECRET)
        assert cmdline.read_text().split("\0")[1:] == ["-c", PROGRAM, f"--key={stars}", f"--again={stars}", "last", ""]
        assert find_process(process) is not None
    finally:
        asyncio.run(stop_process(process, 5.0))
    assert not hide_argument(process, SECRET)


def test_another_process_of_that_pid_is_not_touched() -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    assert not hide_argument(ProcessId(os.getpid(), 1), sys.executable)
    assert Path("/proc/self/cmdline").read_bytes() == before
