"""A command in a terminal of its own: what it shows, and keys for it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
WAIT_S = 60.0


@dataclass
class Terminal:
    """The terminal's end that a person has."""

    descriptor: int
    process: subprocess.Popen[bytes]
    shown: str = ""

    def text(self, pattern: str) -> str:
        """Wait until what was drawn since the last call has the pattern; returns that. Fails with what was drawn."""
        deadline_s, seen = time.monotonic() + WAIT_S, ""
        while time.monotonic() < deadline_s:
            if select.select([self.descriptor], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.descriptor, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    break
            seen = CONTROL.sub("", self.shown)
            if re.search(pattern, seen):
                self.shown = ""
                return seen
        raise AssertionError(f"no {pattern!r} in {seen[-3000:]!r}")

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self.descriptor, keys.encode())

    def end(self) -> int:
        """The exit status; what is still drawn is read meanwhile, as the program would wait for that."""
        deadline_s = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    os.read(self.descriptor, 65536)
                except OSError:
                    break
        return self.process.wait(WAIT_S)


@contextmanager
def watching(settings: Path, *words: str, columns: int = 100, lines: int = 30) -> Iterator[Terminal]:
    """`themis WORDS -c SETTINGS` in a terminal of that size; it is killed if it still runs at the end."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, "-m", "themis_triton.cli", *words, "-c", str(settings)]
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=program, stdout=program, stderr=program, env=environment, start_new_session=True)
    os.close(program)
    try:
        yield Terminal(person, process)
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(person)
