"""Two sidecars of which one leads: what the second is started with, and what shows that it has taken over."""

from __future__ import annotations

import sys

from tests.e2e.daemon_setup import START_TIMEOUT_S, Sidecar, Status

LEADS_WITHIN_S, TICKS_WITHIN_S = 5.0, 15.0


def leads(status: Status) -> bool:
    """Whether this very sidecar leads and has ticked."""
    return bool(status["leader"]["here"] and status["tick"])


async def follow(sidecar: Sidecar) -> None:
    """Start a sidecar while another one leads."""
    sidecar.spawn()
    await sidecar.until("who leads", lambda s: bool(s["leader"] and s["leader"]["name"]) and not s["leader"]["here"], START_TIMEOUT_S)


async def taken_over(sidecar: Sidecar, at_s: float) -> Status:
    """The first tick of the next leader, which has the lead in time. `at_s`: when the former one was ended, by the time of day."""
    status = await sidecar.until("the lead", leads, TICKS_WITHIN_S)
    led_s = status["leader"]["since_s"] - at_s
    sys.stdout.write(f"led after {led_s:.2f} s, first tick after {status['at_s'] - at_s:.2f} s\n")
    assert 0.0 < led_s < LEADS_WITHIN_S
    assert status["events"][0]["kinds"] == ["leadership_taken_over"]
    return status
