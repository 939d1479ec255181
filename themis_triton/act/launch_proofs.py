"""Launches whose server has not served for long yet: the loss of such a server counts as a failed launch."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_triton.act.backoff import Backoff
from themis_triton.core.fleet import Server

PROVEN_AFTER_S = 60.0
"""A server that is lost sooner after its launch counts as a failed launch."""


@dataclass(slots=True)
class LaunchProofs:
    """Since when the servers serve that were launched lately, and their slots. Servers of an earlier daemon are proven."""

    backoff: Backoff
    _since_s: dict[str, tuple[str, float]] = field(default_factory=dict)

    def began(self, server: Server, now_s: float) -> None:
        """A launched server begins to serve."""
        self._since_s[server.name] = (server.slot or "", now_s)

    def lost(self, server: Server, now_s: float) -> str:
        """A server is lost: soon after its launch, its slot backs off. Returns what is done, in words."""
        slot, since_s = self._since_s.pop(server.name, ("", now_s))
        if not slot:
            return ""
        until_s = self.backoff.failed(slot, now_s)
        return f"; it had served for {now_s - since_s:.0f} s: launches on {slot} wait for {until_s - now_s:.0f} s"

    def ended(self, server: Server) -> None:
        """A server was stopped."""
        self._since_s.pop(server.name, None)

    def prove(self, now_s: float) -> None:
        """Forget the failures of slots whose server has served long enough."""
        for name, (slot, since_s) in list(self._since_s.items()):
            if now_s - since_s >= PROVEN_AFTER_S:
                del self._since_s[name]
                self.backoff.succeeded(slot)
