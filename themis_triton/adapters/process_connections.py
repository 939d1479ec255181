"""Which processes listen and are connected on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

import psutil

from themis_triton.adapters.process_identity import find_process, identify
from themis_triton.core.fleet import ProcessId


def listening_since_s(port: int) -> float | None:
    """When the process began that listens on a port of this machine, in seconds since the epoch; None if it is not visible. Blocking.

    Of several processes, at different addresses, the oldest one.
    """
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = {each.pid for each in listening if each.laddr and each.laddr.port == port}
        # psutil's start times are off by up to a second, because the kernel's boot time is in whole seconds.
        ticks = [identify(pid).start_ticks for pid in pids if pid is not None] if None not in pids else []
        return _boot_s() + min(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    except (psutil.Error, ProcessLookupError):
        return None


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)


def has_clients(identity: ProcessId, ports: Collection[int]) -> bool:
    """Whether another process than this one is connected to one of the ports at which the process listens. Blocking."""
    process = find_process(identity)
    if process is None:
        return False
    try:
        own = {(each.laddr, each.raddr) for each in psutil.Process().net_connections("tcp") if each.raddr}
        connections = process.net_connections("tcp")
    except psutil.Error:
        return False  # The process ended meanwhile.
    established = [each for each in connections if each.status == psutil.CONN_ESTABLISHED and each.laddr and each.laddr.port in ports]
    return any((each.raddr, each.laddr) not in own for each in established)
