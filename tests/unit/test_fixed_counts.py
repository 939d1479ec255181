"""Adopted servers that refuse changes of their models are planned without that lever."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, action, config, record, server, snapshot
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.fleet import Phase
from themis_triton.daemon.components import Components
from themis_triton.daemon.fixed_counts import ASK_AGAIN_S, FixedWatch, find_fixed, fixed_actuators, with_fixed_counts

REASON = "server a runs without explicit model control. Fix: start it with --model-control-mode=explicit"


def components(bench: Bench) -> Components:
    return cast("Components", SimpleNamespace(world=bench.world, control=bench.control))


def test_adopted_servers_that_refuse_changes_are_found_and_others_left() -> None:
    own = server("own", launched=True)
    away = replace(server("away", launched=False), phase=Phase.UNREACHABLE)
    bench = Bench(server("a", launched=False), server("b", launched=False), own, away, server("silent", launched=False))
    bench.control.unchangeable = dict.fromkeys(("a", "own", "away"), REASON)
    bench.control.silent.add("silent")
    assert asyncio.run(find_fixed(components(bench))) == {"a": REASON}


def test_their_actuators_rest_for_ever_with_the_reason() -> None:
    bench = Bench(server("a", launched=False), server("b", launched=False))
    bench.executor.unchangeable = fixed_actuators({"a": REASON}, bench.fleet.all())
    resting: dict[str, Any] = {f"a/{DETECTOR}": REASON, f"a/{CLASSIFIER}": REASON}
    assert bench.executor.resting == resting
    assert bench.executor.backing_off(5.0).keys() == resting.keys()


def test_the_counts_that_they_run_are_the_bounds_of_their_models() -> None:
    servers = [server("a", (3, 1), launched=False), server("b", (2, 1), launched=False), server("c", (1, 6), launched=False)]
    before = config()
    after = with_fixed_counts(before, {"a": REASON, "b": REASON}, servers)
    bounds = {name: (model.min_instances, model.max_instances) for name, model in after.models.items()}
    assert bounds[DETECTOR] == (2, 3)
    assert bounds[CLASSIFIER] == (1, 1)
    assert with_fixed_counts(before, {}, servers) == before


class TestWatch:
    """Servers that come after the sidecar, or restart in another mode."""

    @staticmethod
    async def followed(watch: FixedWatch, bench: Bench, fixed: dict[str, str], *outcomes: Outcome) -> dict[str, str]:
        """The servers that refuse changes once what the tick asked for is answered."""
        for each in (outcomes, ()):
            seen = replace(record(seen=snapshot(bench.fleet.all(), bench.clock.at_s)), outcomes=each)
            changed = watch.follow(seen, fixed, bench.control)
            fixed = fixed if changed is None else changed
            await bench.turns()
        return fixed

    def test_one_that_comes_later_is_found_when_it_serves(self) -> None:
        async def work() -> None:
            watch, bench = FixedWatch(), Bench(replace(server("a", launched=False), phase=Phase.UNREACHABLE), server("own"))
            bench.control.unchangeable = dict.fromkeys(("a", "own"), REASON)
            assert await self.followed(watch, bench, {}) == {}
            bench.fleet.move("a", Phase.SERVING)
            assert await self.followed(watch, bench, {}) == {"a": REASON}

        asyncio.run(work())

    def test_one_that_changes_its_mode_unseen_is_found_by_the_first_change_that_it_refuses(self) -> None:
        async def work() -> None:
            watch, bench = FixedWatch(), Bench(server("a", launched=False))
            assert await self.followed(watch, bench, {}) == {}
            bench.control.unchangeable["a"] = REASON
            assert await self.followed(watch, bench, {}) == {}
            refused = Outcome(action(ActionKind.GROW), OutcomeKind.REFUSED, 0.0, 0.0, "explicit model load / unload is not allowed")
            assert await self.followed(watch, bench, {}, refused) == {"a": REASON}
            del bench.control.unchangeable["a"]
            bench.clock.at_s += ASK_AGAIN_S
            assert await self.followed(watch, bench, {"a": REASON}) == {}

        asyncio.run(work())

    def test_other_counts_of_such_a_server_are_planned_with(self) -> None:
        async def work() -> None:
            watch, bench, fixed = FixedWatch(), Bench(server("a", launched=False)), {"a": REASON}
            bench.control.unchangeable["a"] = REASON
            await self.followed(watch, bench, fixed)
            seen = record(seen=snapshot(bench.fleet.all()))
            assert watch.follow(seen, fixed, bench.control) is None
            more = record(seen=snapshot((server("a", (3, 1), launched=False),)))
            assert watch.follow(more, fixed, bench.control) == fixed

        asyncio.run(work())
