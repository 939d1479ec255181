"""Which of several sidecars leads, by a lease in the engine: contend, renew, and stop in time.

No clock of another machine is trusted. A lease is free once its record has not changed for its time by the watcher's own clock; a leader
acts no longer than two thirds of that time after the beginning of its last renewal, by its own clock, which goes on while it is paused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from themis_triton.adapters.clock import SystemClock, uptime_s
from themis_triton.core.errors import LeadershipLostError, ServerError
from themis_triton.core.lease import Handover, Leader, LeaseRecord, StoredLease
from themis_triton.ports import LeaseStore

log = structlog.get_logger()
_RELEASE_WITHIN_S = 2.0
_ACT_PART, _RENEW_PART = 2.0 / 3.0, 1.0 / 6.0
"""Parts of the lease's time: for how long a leader acts after a renewal, and how often it renews, or a follower looks."""


class Election:
    """One sidecar's part in it.

    Args:
        store: where the lease is.
        name: this sidecar, by another name at each of its starts.
        lease_s: for how long the lease lasts without a renewal, when it is this sidecar's.
        clock: seconds that go on while this machine or process is paused.
        pause: waits.
    """

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        lease_s: float,
        clock: Callable[[], float] = uptime_s,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store, self._name, self._lease_s = store, name, lease_s
        self._clock, self._pause = clock, pause
        self._epoch_clock = SystemClock()
        self._own: StoredLease | None = None
        self._acts_until_s = -1.0
        self._seen: StoredLease | None = None
        self._seen_at_s = 0.0
        self._fault: str | None = None
        self.former: LeaseRecord | None = None
        """The lease before this sidecar's; None where there was none."""
        self.handover: Callable[[], Handover] = Handover
        """What is left for the next leader, asked at each renewal."""

    @property
    def leader(self) -> Leader:
        """Who leads, as was last seen."""
        if self._own is not None:
            own = self._own.record
            return Leader(self._name, here=True, since_s=own.since_s, epoch=own.epoch)
        if self._seen is None or not self._seen.record.holder:
            return Leader()
        return Leader(self._seen.record.holder, since_s=self._seen.record.since_s, epoch=self._seen.record.epoch)

    def check(self) -> None:
        """Before each action. LeadershipLostError where this sidecar does not lead any more, by its own clock."""
        if self._own is None or self._clock() >= self._acts_until_s:
            raise LeadershipLostError("this sidecar's lease has ended, so it changes nothing more")

    async def wait(self) -> None:
        """Wait until this sidecar leads. While the engine does not answer, it goes on waiting."""
        told = ""
        while not await self.contend():
            if self.leader.name not in ("", told):
                told = self.leader.name
                log.info("standby_started", leader=told, message="this sidecar takes over when the leader ends, hangs or is cut off")
            await self._pause(_RENEW_PART * self._lease_s)

    async def contend(self) -> bool:
        """Take the lease if it is free; whether it was taken."""
        began_s = self._clock()
        try:
            stored = await self._store.read()
            if stored is not None and (self._seen is None or stored.version != self._seen.version):
                self._seen_at_s = self._clock()
            self._seen = stored
            if stored is not None and not self._is_free(stored.record, began_s):
                self._tell(None)
                return False
            epoch = stored.record.epoch + 1 if stored is not None else 1
            record = LeaseRecord(self._name, epoch, self._epoch_clock.now_s(), self._lease_s)
            if stored is not None:
                record = replace(record, handover=stored.record.handover)
            began_s = self._clock()
            own = await self._store.write(record, stored)
        except ServerError as error:
            self._tell(str(error))
            return False
        self._tell(None)
        if own is None:
            return False
        self._own, self.former = own, stored.record if stored is not None else None
        self.handover = lambda: record.handover  # that of the former leader, until this one has taken over
        self._acts_until_s = began_s + _ACT_PART * self._lease_s
        return True

    def _is_free(self, record: LeaseRecord, now_s: float) -> bool:
        """Its own record frees it too: what this sidecar led has ended before it contends again."""
        return record.holder in ("", self._name) or now_s - self._seen_at_s >= max(record.lease_s, self._lease_s)

    def _tell(self, fault: str | None) -> None:
        """Log once that the engine does not answer."""
        if fault is not None and self._fault is None:
            log.warning("lease_unreachable", error=fault, message="no sidecar can take over until the lease can be read and written again")
        self._fault = fault

    async def keep(self) -> str:
        """Renew the lease until it is lost; returns why."""
        while True:
            await self._pause(_RENEW_PART * self._lease_s)
            left_s = self._acts_until_s - self._clock()
            if left_s <= 0.0:
                return self._end(f"the lease was not renewed in time ({self._fault or 'this process was paused or had no processor'})")
            try:
                lost = await asyncio.wait_for(self.renew(), left_s)
            except (ServerError, TimeoutError) as error:
                self._fault = str(error) or "no answer in time"
            else:
                self._fault = None
                if lost is not None:
                    return self._end(lost)

    async def renew(self) -> str | None:
        """Renew once; why the lease is another's, None where it is still this sidecar's. ServerError when the engine does not answer."""
        if self._own is None:
            return "it does not lead"
        began_s = self._clock()
        record = replace(self._own.record, handover=self.handover())
        written = await self._store.write(record, self._own)
        if written is None:
            stored = await self._store.read()
            if stored is None or (stored.record.holder, stored.record.epoch) != (record.holder, record.epoch):
                return f"{stored.record.holder or 'no sidecar' if stored is not None else 'no sidecar'} has the lease"
            self._own = stored  # an earlier renewal whose answer was lost
            return None
        self._own, self._acts_until_s = written, began_s + _ACT_PART * self._lease_s
        return None

    def _end(self, why: str) -> str:
        self._own, self._acts_until_s = None, -1.0
        return why

    async def release(self) -> None:
        """Give the lease up, if it is this sidecar's and the engine answers soon; nothing of what it led may run any more."""
        if self._own is not None:
            record = replace(self._own.record, holder="", handover=self.handover())
            with contextlib.suppress(ServerError, TimeoutError):
                await asyncio.wait_for(self._store.write(record, self._own), _RELEASE_WITHIN_S)
        self._end("it was given up")
