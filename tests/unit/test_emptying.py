"""A server leaves a model's routes until its queue is empty, where a growth waits for that and the surge needs more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, STAGES, action, config, decided, estimate, server, snapshot
from themis_triton.core.action import ActionKind, Plan
from themis_triton.core.decision import ClampKind, Decision
from themis_triton.core.estimate import Estimate, ModelEstimate
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import ModelCounters, OpenCall, ServerReading, Snapshot
from themis_triton.core.routes import RouteTable
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.plan.routes import route_table
from themis_triton.plan.steps import plan

OPEN = 5.0
SHORT = (("a", 90.0), ("b", 70.0))


def waiting(pending: tuple[tuple[str, float], ...] = SHORT, calls: tuple[str, ...] = ("a", "b"), after: int = 2) -> Snapshot:
    """Servers with one instance, where calls have been open for long, and so many requests wait."""
    servers = [server(name) for name, _ in pending]
    readings = tuple(ServerReading(name, NOW_S, {DETECTOR: ModelCounters(pending=count)}) for name, count in pending)
    opened = tuple(OpenCall(name, DETECTOR, ModelState(1, 8), ModelState(after, 8), NOW_S - OPEN) for name in calls)
    busy = frozenset(f"{name}/{DETECTOR}" for name in calls)
    return replace(snapshot(servers), readings=readings, open_calls=opened, busy=busy)


def surge(rps: float, completed_rps: float, backlog: float = 160.0) -> Estimate:
    base = estimate(rps)
    models = {name: ModelEstimate(name, rps, rps, rps, 0.0, backlog, completion_rps=completed_rps, failure_rps=0.0) for name in STAGES}
    return replace(base, models=models, pipelines={"video": replace(base.pipelines["video"], backlog=backlog, newest_rps=rps)})


def at(seen: Snapshot, demand: Estimate) -> Decision:
    return decided(PolicyState(), PolicyInput(seen, demand), Planner(build_rules(config(slots=2))))[1]


def unrouted(seen: Snapshot, demand: Estimate) -> tuple[tuple[str, str], ...]:
    target = at(seen, demand).target
    assert target is not None
    return target.unrouted


def test_the_server_with_the_fewest_waiting_requests_leaves_first_and_the_decision_says_so() -> None:
    seen = waiting()
    decision = at(seen, surge(200.0, 60.0))
    assert decision.target is not None
    assert decision.target.unrouted == (("b", DETECTOR),)
    desired = decision.target.servers["b"][DETECTOR].instances
    assert desired > 2
    last = decision.clamps[-1]
    assert (last.kind, last.sentence) == (
        ClampKind.OPEN_CALL,
        f"{DETECTOR} on b 1→2: call open; no new requests there until its queue is empty, so that it can grow to {desired}",
    )
    assert plan(decision, seen, config(slots=2)).unrouted == frozenset({("b", DETECTOR)})


@pytest.mark.parametrize(
    ("seen", "demand"),
    [
        (waiting((("a", 90.0),), ("a",)), surge(200.0, 60.0)),
        (waiting(after=16), surge(200.0, 60.0)),
        (waiting((("a", 9.0), ("b", 7.0))), surge(200.0, 200.0, 16.0)),
        (waiting(), surge(60.0, 400.0)),
        (waiting(calls=()), surge(200.0, 60.0)),
    ],
    ids=["no other server", "the call adds enough", "requests wait briefly", "the queues drain", "no call is open"],
)
def test_otherwise_no_server_leaves(seen: Snapshot, demand: Estimate) -> None:
    assert unrouted(seen, demand) == ()


def test_a_call_as_young_as_an_initialisation_is_left_alone() -> None:
    seen = waiting()
    young = tuple(replace(call, since_s=NOW_S - 0.4) for call in seen.open_calls)
    assert unrouted(replace(seen, open_calls=young), surge(200.0, 60.0)) == ()


def excluded(table: RouteTable) -> frozenset[str]:
    return table.models[DETECTOR].excluded


@pytest.mark.parametrize(
    ("servers", "pairs", "names"),
    [
        ((server("a"), server("b")), {("a", DETECTOR)}, {"a"}),
        ((server("a"), server("b")), {("a", DETECTOR), ("b", DETECTOR)}, set()),
        ((server("a"), server("b")), {("a", CLASSIFIER)}, set()),
        ((server("a"), server("b", phase=Phase.UNREACHABLE)), {("a", DETECTOR)}, set()),
        ((server("a"),), {("a", DETECTOR)}, set()),
    ],
)
def test_requests_always_have_a_serving_server(servers: tuple[Server, ...], pairs: set[tuple[str, str]], names: set[str]) -> None:
    assert excluded(route_table(servers, STAGES, pairs)) == names


def test_a_server_returns_to_the_routes_when_its_call_returns() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        bench.control.gate = asyncio.Event()
        bench.executor.submit(Plan("d", (action(ActionKind.GROW, "a"),)))
        bench.executor.submit(Plan("e", unrouted=frozenset({("a", DETECTOR)})))
        await bench.turns()
        assert excluded(bench.routes.tables[-1]) == {"a"}
        bench.executor.submit(Plan("resumed"))
        await bench.turns()
        assert excluded(bench.routes.tables[-1]) == {"a"}
        bench.control.gate.set()
        await bench.settled()
        await bench.turns()
        assert excluded(bench.routes.tables[-1]) == frozenset()
        assert bench.executor.routes.unwritten is None

    asyncio.run(work())


def test_a_server_stays_out_of_the_routes_when_a_shrink_there_ends() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        pairs = frozenset({("a", DETECTOR)})
        bench.executor.submit(Plan("d", (action(ActionKind.SHRINK, "a", before=2, after=1),), unrouted=pairs))
        await bench.settled()
        await bench.turns()
        assert excluded(bench.routes.tables[-1]) == {"a"}

    asyncio.run(work())


def test_a_server_returns_to_the_routes_when_the_plan_no_longer_names_it_and_when_the_sidecar_stops() -> None:
    async def work() -> None:
        bench = Bench(server("a"), server("b"))
        for end in ("plan", "stop"):
            bench.executor.submit(Plan("d", unrouted=frozenset({("a", DETECTOR)})))
            await bench.turns()
            assert excluded(bench.routes.tables[-1]) == {"a"}
            if end == "plan":
                bench.executor.submit(Plan("e", unrouted=frozenset()))
                await bench.turns()
            else:
                await bench.executor.cancel()
            assert excluded(bench.routes.tables[-1]) == frozenset()

    asyncio.run(work())
