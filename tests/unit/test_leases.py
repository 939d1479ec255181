"""Which of several sidecars leads: the contract of leases, and what a leader does without its engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from tests.contracts.leases import LEASE_S, LeaseContract, Sidecar, Stores, two
from tests.unit.kubernetes_double import NAMESPACE, Cluster
from themis_triton.adapters.http import HttpClient, HttpError
from themis_triton.adapters.kubernetes.lease import KubernetesLease
from themis_triton.adapters.lease_values import record_of, record_text
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.config import KubernetesLaunchConfig, StandbyConfig, StandbyKind, ThemisConfig
from themis_triton.core.errors import LeadershipLostError, ServerError
from themis_triton.core.lease import LeaseRecord, StoredLease
from themis_triton.daemon import terms
from themis_triton.daemon.fencing import CHANGES, fenced
from themis_triton.daemon.terms import Term, lead_in_turn
from themis_triton.ports import LeaseStore, ModelControl, RouteWriter, ServerLauncher
from themis_triton.settings import load_settings


class Engine:
    """A lease in memory. `away`: it does not answer."""

    def __init__(self) -> None:
        self.stored: StoredLease | None = None
        self.away = False

    async def read(self) -> StoredLease | None:
        await self._answer()
        return self.stored

    async def write(self, record: LeaseRecord, after: StoredLease | None) -> StoredLease | None:
        await self._answer()
        if (after.version if after else None) != (self.stored.version if self.stored else None):
            return None
        text = record_of(record_text(record), "the test's lease")
        self.stored = StoredLease(text, str(int(after.version if after else 0) + 1))
        return self.stored

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise ServerError("the engine does not answer")

    async def close(self) -> None:
        pass


@asynccontextmanager
async def in_memory() -> AsyncIterator[Callable[[], LeaseStore]]:
    engine = Engine()
    yield lambda: engine


class TestMemory(LeaseContract):
    @pytest.fixture
    def stores(self) -> Stores:
        return in_memory


class TestKubernetes(LeaseContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> Stores:
        @asynccontextmanager
        async def stores() -> AsyncIterator[Callable[[], LeaseStore]]:
            async with Cluster(tmp_path).serve() as cluster:
                config = KubernetesLaunchConfig((), tmp_path, namespace=NAMESPACE, kubeconfig=cluster.kubeconfig(tmp_path))
                yield lambda: KubernetesLease(config)

        return stores


def test_on_kubernetes_a_renewal_whose_answer_was_lost_is_known_as_the_leaders_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Cluster(tmp_path).serve() as cluster:
            config = KubernetesLaunchConfig((), tmp_path, namespace=NAMESPACE, kubeconfig=cluster.kubeconfig(tmp_path))
            sidecar = Sidecar(KubernetesLease(config), "first", 0.0)
            assert await sidecar.election.contend()
            cluster.lost_answers = 1
            assert await sidecar.election.renew() is None
            assert await sidecar.election.renew() is None
            lease = cluster.leases["themis"]
            assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("first", 1)
            await sidecar.store.close()

    asyncio.run(scenario())


def test_a_leader_without_its_engine_stops_before_another_one_may_lead() -> None:
    async def scenario() -> None:
        async with two(in_memory) as (first, second):
            assert await first.election.contend()
            assert not await second.election.contend()
            began_s = first.clock.now_s
            first.store.away = True  # type: ignore[attr-defined]
            assert "does not answer" in await first.election.keep()
            assert not first.leads
            assert first.clock.now_s - began_s < LEASE_S
            assert not await second.election.contend()
            second.clock.now_s += LEASE_S
            first.store.away = False  # type: ignore[attr-defined]
            assert await second.election.contend()

    asyncio.run(scenario())


def test_a_follower_waits_while_the_engine_is_away_and_leads_once_it_answers() -> None:
    async def scenario() -> None:
        async with two(in_memory) as (first, second):
            first.store.away = True  # type: ignore[attr-defined]
            waiting = asyncio.create_task(second.election.wait())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
            first.store.away = False  # type: ignore[attr-defined]
            await asyncio.wait_for(waiting, 10.0)
            assert second.leads

    asyncio.run(scenario())


def settings_of(folder: Path) -> ThemisConfig:
    """Those of a sidecar that has a folder and a status address of its own, and a short lease."""
    folder.mkdir()
    (folder / "themis.yaml").write_text(
        "servers: {one: {grpc: '127.0.0.1:1', http: '127.0.0.1:2', metrics: '127.0.0.1:3', device: 'cpu:0'}}\n"
        "models: {m: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}}\n"
        f"pipelines: {{p: {{stages: [m], slo_ms: 300}}}}\nstatus: {{address: '127.0.0.1:{free_ports(1)[0]}'}}\n"
    )
    return replace(load_settings(folder / "themis.yaml"), standby=StandbyConfig(StandbyKind.RAY, 3.0))


async def seen(config: ThemisConfig) -> tuple[str, int]:
    """The sentence of a follower's status, once it has one that names a leader, and what its liveness says."""
    async with HttpClient(5.0) as http:
        while True:
            await asyncio.sleep(0.02)
            with suppress(HttpError):
                sentence = json.loads(await http.get(config.status.address.url("/v1/status")))["sentence"]
                if "no known sidecar" not in sentence:
                    return sentence, len(await http.get(config.status.address.url("/healthz")))


def test_a_sidecar_that_loses_its_lease_ends_what_it_led_and_follows_and_a_follower_tells_who_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, stop = Engine(), asyncio.Event()
    monkeypatch.setattr(terms, "build_lease", lambda *_: engine)
    first, second = settings_of(tmp_path / "first"), settings_of(tmp_path / "second")
    terms_led: asyncio.Queue[Term] = asyncio.Queue()
    ended: asyncio.Queue[Term] = asyncio.Queue()

    async def lead(term: Term) -> None:
        terms_led.put_nowait(term)
        try:
            await stop.wait()
        finally:
            ended.put_nowait(term)

    async def scenario() -> None:
        sidecars = [asyncio.create_task(lead_in_turn(first, stop, lead))]
        leader = await terms_led.get()
        name = leader.election.leader.name
        sidecars.append(asyncio.create_task(lead_in_turn(second, stop, lead)))
        sentence, alive = await seen(second)
        assert sentence == f"stands by; {name} leads"
        assert alive
        engine.away = True
        assert await ended.get() is leader
        with pytest.raises(LeadershipLostError):
            leader.election.check()
        engine.away = False
        again = await terms_led.get()
        assert again.election.leader.epoch > 1
        assert again.former is not None
        stop.set()
        await asyncio.gather(*sidecars)
        assert engine.stored is not None
        assert engine.stored.record.holder == ""

    asyncio.run(asyncio.wait_for(scenario(), 60.0))


def test_a_fenced_port_begins_no_change_and_still_reads() -> None:
    class Launcher:
        begun: ClassVar[list[str]] = []

        async def stop(self, server: str) -> None:
            self.begun.append(server)

        async def is_alive(self, server: str) -> bool:
            return bool(server)

    leads = True

    def check() -> None:
        if not leads:
            raise LeadershipLostError("it does not lead")

    port = fenced(Launcher(), check)
    asyncio.run(port.stop("one"))
    leads = False
    with pytest.raises(LeadershipLostError):
        asyncio.run(port.stop("two"))
    assert Launcher.begun == ["one"]
    assert asyncio.run(port.is_alive("two"))


def test_every_call_of_a_port_is_known_as_a_change_or_as_none() -> None:
    reads = {"read_models", "read_refusal", "list_ready", "list_stateful", "answers", "forget", "discover", "ensembles_of", "warm_up"}
    reads |= {"use_inputs", "read_files_versions", "list_nodes", "is_alive", "read_log", "wait_idle", "read_memory", "close"}
    for port in (ModelControl, ServerLauncher, RouteWriter):
        calls = {name for name in vars(port) if not name.startswith("_")}
        assert calls <= CHANGES | reads
