"""The keys that are pressed in a terminal, without echo and without waiting for Return."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page_up",
    b"\x1b[6~": "page_down",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
}
MAX_BYTES = 64


@contextmanager
def single_keys() -> Iterator[None]:
    """Standard input gives each key at once, and the terminal is as before at the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def wait_for_keys(woken: int, timeout_s: float) -> list[str]:
    """The keys that were pressed, once there are any, `woken` is readable, or the time is over. EOFError where the terminal is gone."""
    descriptor = sys.stdin.fileno()
    ready, _, _ = select.select([descriptor, woken], [], [], timeout_s)
    if woken in ready:
        os.read(woken, MAX_BYTES)
    if descriptor not in ready:
        return []
    data = os.read(descriptor, MAX_BYTES)
    if not data:
        raise EOFError
    return list(keys_of(data))


def keys_of(data: bytes) -> Iterator[str]:
    """The names of the keys of some input: those of NAMES, or characters. Other escape sequences are no key."""
    while data:
        name = next((sequence for sequence in NAMES if len(sequence) > 1 and data.startswith(sequence)), None)
        if name is None and data[:1] == b"\x1b" and data[1:2] in {b"[", b"O"}:
            data = _after_sequence(data)
            continue
        name = name or data[:1]
        yield NAMES.get(name) or name.decode("ascii", "replace")
        data = data[len(name) :]


def _after_sequence(data: bytes) -> bytes:
    """What follows a control sequence: it ends with its first byte from @ to ~."""
    end = next((place for place in range(2, len(data)) if 0x40 <= data[place] <= 0x7E), len(data) - 1)
    return data[end + 1 :]
