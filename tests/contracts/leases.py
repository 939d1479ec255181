"""What every lease must do, whichever engine keeps it; each sidecar has a clock of its own that no other one is compared with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from themis_triton.core.errors import LeadershipLostError
from themis_triton.core.lease import Handover
from themis_triton.daemon.election import Election
from themis_triton.ports import LeaseStore

LEASE_S = 6.0
Stores = Callable[[], AbstractAsyncContextManager[Callable[[], LeaseStore]]]
"""Opens one new lease; what it gives makes a connection to it for each sidecar."""


class OwnClock:
    """Moves only where the test says so, or where its sidecar waits."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    async def pause(self, seconds: float) -> None:
        self.now_s += seconds


class Sidecar:
    def __init__(self, store: LeaseStore, name: str, starts_at_s: float) -> None:
        self.store, self.clock = store, OwnClock(starts_at_s)
        self.election = Election(store, name, LEASE_S, self.clock, self.clock.pause)

    @property
    def leads(self) -> bool:
        """Whether it may act."""
        try:
            self.election.check()
        except LeadershipLostError:
            return False
        return True


@asynccontextmanager
async def two(stores: Stores) -> AsyncIterator[tuple[Sidecar, Sidecar]]:
    async with stores() as connect:
        both = Sidecar(connect(), "first", 1000.0), Sidecar(connect(), "second", 7.0)
        try:
            yield both
        finally:
            for each in both:
                await each.store.close()


class LeaseContract:
    """Subclasses have the fixture `stores`."""

    def test_of_two_that_contend_at_once_one_leads(self, stores: Stores) -> None:
        async def scenario() -> None:
            async with two(stores) as (first, second):
                won = await asyncio.gather(first.election.contend(), second.election.contend())
                assert sorted(won) == [False, True]
                assert [first.leads, second.leads] == list(won)
                loser = second if won[0] else first
                assert not await loser.election.contend()
                assert loser.election.leader.name == ("first" if won[0] else "second")

        asyncio.run(scenario())

    def test_a_lease_that_is_renewed_is_not_taken_and_one_that_rests_for_its_time_is(self, stores: Stores) -> None:
        async def scenario() -> None:
            async with two(stores) as (first, second):
                assert await first.election.contend()
                assert not await second.election.contend()
                for _ in range(3):
                    second.clock.now_s += 0.9 * LEASE_S
                    assert await first.election.renew() is None
                    assert not await second.election.contend()
                second.clock.now_s += LEASE_S
                assert await second.election.contend()
                assert second.leads
                assert second.election.leader.epoch == first.election.leader.epoch + 1
                lost = await first.election.renew()
                assert lost is not None
                assert "second has the lease" in lost
                assert not await first.election.contend()

        asyncio.run(scenario())

    def test_a_leader_that_was_paused_is_fenced_when_it_wakes_up_and_writes_nothing(self, stores: Stores) -> None:
        async def scenario() -> None:
            async with two(stores) as (first, second):
                assert await first.election.contend()
                assert not await second.election.contend()
                first.clock.now_s += LEASE_S
                assert not first.leads
                before = await second.store.read()
                assert "paused" in await first.election.keep()
                assert await second.store.read() == before
                second.clock.now_s += LEASE_S
                assert await second.election.contend()
                assert (first.leads, second.leads) == (False, True)

        asyncio.run(scenario())

    def test_a_lease_that_is_given_up_is_free_at_once_with_what_its_holder_leaves(self, stores: Stores) -> None:
        async def scenario() -> None:
            async with two(stores) as (first, second):
                assert await first.election.contend()
                first.election.handover = lambda: Handover(serving=("one", "two"), paused=True)
                assert not await second.election.contend()
                await first.election.release()
                assert not first.leads
                assert await second.election.contend()
                assert second.election.former is not None
                assert second.election.former.handover == Handover(serving=("one", "two"), paused=True)

        asyncio.run(scenario())

    def test_a_record_that_was_replaced_is_not_replaced_by_a_late_write(self, stores: Stores) -> None:
        async def scenario() -> None:
            async with two(stores) as (first, second):
                assert await first.election.contend()
                old = await first.store.read()
                assert old is not None
                for _ in range(20):
                    assert await first.election.renew() is None
                assert await second.store.write(old.record, old) is None
                newest = await second.store.read()
                assert newest is not None
                assert newest.version != old.version
                assert await first.election.renew() is None

        asyncio.run(scenario())
