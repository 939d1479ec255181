from dataclasses import replace

import pytest

from tests.unit.samples import NOW_S, action, launch, record, server, snapshot
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind
from themis_triton.core.config import Prices
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.record import TickRecord
from themis_triton.daemon.usage import UsageTotals, counts

PRICES = Prices(server=10.0, instance=1.0)


def at(second: float, *servers: Server, outcomes: tuple[Outcome, ...] = ()) -> TickRecord:
    return replace(record(seen=snapshot(servers, NOW_S + second)), outcomes=outcomes)


def ended(done: Action, kind: OutcomeKind) -> Outcome:
    return Outcome(done, kind, NOW_S, NOW_S + 1)


def test_a_server_costs_in_every_phase() -> None:
    for phase in Phase:
        assert counts((server("a", (2, 1), phase=phase),)) == (1, 3)


def test_seconds_are_integrated_tick_by_tick() -> None:
    one, two = server("a", (2, 1)), server("b", (4, 1))
    account = UsageTotals().add(at(0, one), PRICES)
    assert (account.server_seconds, account.instance_seconds, account.cost) == (0.0, 0.0, 0.0)
    account = account.add(at(10, one), PRICES).add(at(12, one, two), PRICES).add(at(13), PRICES)
    assert account.server_seconds == pytest.approx(10 + 2 * 2)
    assert account.instance_seconds == pytest.approx(10 * 3 + 2 * 8)
    assert account.cost == pytest.approx(10 * 14.0 + 46.0)
    assert (account.max_servers, account.max_instances) == (2, 8)


def test_a_clock_that_steps_back_takes_nothing_back() -> None:
    account = UsageTotals().add(at(10, server("a")), PRICES).add(at(9, server("a")), PRICES)
    assert account.server_seconds == 0.0


def test_actions_are_counted_by_kind_and_failures_apart() -> None:
    grow = action(ActionKind.GROW)
    first = (ended(grow, OutcomeKind.DONE), ended(launch(), OutcomeKind.REFUSED), ended(grow, OutcomeKind.SKIPPED))
    second = (ended(grow, OutcomeKind.DONE), ended(launch(), OutcomeKind.DONE), ended(grow, OutcomeKind.LOST))
    account = UsageTotals().add(at(0, outcomes=first), PRICES).add(at(1, outcomes=second), PRICES)
    assert account.actions == {"grow": 2, "launch": 1}
    assert account.failed_actions == {"launch": 1, "grow": 1}
