from dataclasses import replace

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, action, config, launch, record, server, snapshot
from themis_triton.core.action import Action, ActionKind, Outcome, OutcomeKind
from themis_triton.core.config import Placement, Prices, ThemisConfig
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import OpenCall
from themis_triton.core.record import TickRecord
from themis_triton.daemon.usage import UsageTotals, counts
from themis_triton.decide.rules import build_rules
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.engine import Simulation
from themis_triton.sim.layout import Layout
from themis_triton.sim.servers import row_devices
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import SimWorld
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet

SETTINGS = replace(config(), prices=Prices(server=10.0, instance=1.0))
OWN = {DETECTOR: (30.0, 5.0), CLASSIFIER: (None, 2.0)}
"""Models with prices of their own, of a server (where stages are separate) and of an instance."""


def with_own_prices(placement: Placement) -> ThemisConfig:
    models = {name: replace(SETTINGS.models[name], server_price=server, instance_price=each) for name, (server, each) in OWN.items()}
    return replace(SETTINGS, models=models, planning=replace(SETTINGS.planning, placement=placement))


def at(second: float, *servers: Server, outcomes: tuple[Outcome, ...] = ()) -> TickRecord:
    return replace(record(seen=snapshot(servers, NOW_S + second)), outcomes=outcomes)


def ended(done: Action, kind: OutcomeKind) -> Outcome:
    return Outcome(done, kind, NOW_S, NOW_S + 1)


def test_a_server_costs_in_every_phase() -> None:
    for phase in Phase:
        assert counts((server("a", (2, 1), phase=phase),)) == (1, 3)


def test_seconds_are_integrated_tick_by_tick() -> None:
    one, two = server("a", (2, 1)), server("b", (4, 1))
    account = UsageTotals().add(at(0, one), SETTINGS)
    assert (account.status.server_seconds, account.status.instance_seconds, account.status.cost) == (0.0, 0.0, 0.0)
    account = account.add(at(10, one), SETTINGS).add(at(12, one, two), SETTINGS).add(at(13), SETTINGS)
    assert account.status.server_seconds == pytest.approx(10 + 2 * 2)
    assert account.status.instance_seconds == pytest.approx(10 * 3 + 2 * 8)
    assert account.status.cost == pytest.approx(10 * 14.0 + 46.0)
    assert (account.status.max_servers, account.status.max_instances) == (2, 8)


def test_an_instance_costs_until_it_is_gone_also_while_it_takes_no_more_requests() -> None:
    removing = at(0, server("a", (2, 1)))
    call = OpenCall("a", DETECTOR, ModelState(3, 8), ModelState(2, 8), NOW_S)
    records = [replace(removing, snapshot=replace(removing.snapshot, at_s=NOW_S + second, open_calls=(call,))) for second in (0, 2)]
    assert UsageTotals().add(records[0], SETTINGS).add(records[1], SETTINGS).status.cost == pytest.approx(2 * (10.0 + 4.0))


def test_server_seconds_are_told_apart_by_what_the_servers_are_there_for() -> None:
    phases = (Phase.LAUNCHING, Phase.WARMING, Phase.SERVING, Phase.UNREACHABLE, Phase.DRAINING, Phase.STOPPING)
    fleet = [server(phase.value, phase=phase) for phase in phases] + [server("own", phase=Phase.UNREACHABLE, launched=False)]
    account = UsageTotals().add(at(0, *fleet), SETTINGS).add(at(3, *fleet), SETTINGS).add(at(5, *fleet), SETTINGS)
    assert account.status.server_seconds_by_kind == {"adopted": 5.0, "launched": 10.0, "starting": 10.0, "draining": 10.0}


def test_a_clock_that_steps_back_takes_nothing_back() -> None:
    account = UsageTotals().add(at(10, server("a")), SETTINGS).add(at(9, server("a")), SETTINGS)
    assert account.status.server_seconds == 0.0


def test_actions_are_counted_by_kind_and_failures_apart() -> None:
    grow = action(ActionKind.GROW)
    first = (ended(grow, OutcomeKind.DONE), ended(launch(), OutcomeKind.REFUSED), ended(grow, OutcomeKind.SKIPPED))
    second = (ended(grow, OutcomeKind.DONE), ended(launch(), OutcomeKind.DONE), ended(grow, OutcomeKind.LOST))
    account = UsageTotals().add(at(0, outcomes=first), SETTINGS).add(at(1, outcomes=second), SETTINGS)
    assert account.status.actions == {"grow": 2, "launch": 1}
    assert account.status.failed_actions == {"launch": 1, "grow": 1}


def cost_rate(settings: ThemisConfig, *servers: Server) -> float:
    """What the daemon counts for one second of a fleet."""
    return UsageTotals().add(at(0, *servers), settings).add(at(1, *servers), settings).status.cost


def simulated_cost_rate(settings: ThemisConfig, *servers: Server) -> float:
    """What the simulator counts per second for the same fleet."""

    async def started() -> float:
        layout = Layout(np.full((2, 8, 16), 10.0), ((0, 1),), tuple(range(len(row_devices(settings)))), 16)
        world = SimWorld()
        cluster = Cluster(settings, world, Simulation(layout, world, np.array([]), np.array([], dtype=np.int64), 0), seed=0)
        for row, held in enumerate(servers):
            cluster.start(held.name, row, held.models, held.reach)
        return cluster.usage[-1].cost

    return run_virtual(started())


def test_models_cost_their_own_prices_where_they_have_them() -> None:
    one, other = server("a", (2, 1)), server("b", (1, 4))
    assert cost_rate(SETTINGS, one, other) == 2 * 10.0 + 8 * 1.0
    assert cost_rate(with_own_prices(Placement.COLOCATED), one, other) == 2 * 10.0 + 3 * 5.0 + 5 * 2.0
    alone = (replace(one, models={DETECTOR: ModelState(2, 8)}), replace(other, models={CLASSIFIER: ModelState(4, 8)}))
    assert cost_rate(with_own_prices(Placement.SEPARATE), *alone) == 30.0 + 2 * 5.0 + 10.0 + 4 * 2.0


@pytest.mark.parametrize("placement", Placement)
def test_the_daemon_the_simulator_and_the_solver_price_a_fleet_alike(placement: Placement) -> None:
    settings = with_own_prices(placement)
    fleet = [server("a", (2, 1), slot="cpu:0"), server("b", (1, 4), slot="cpu:1")]
    if placement is Placement.SEPARATE:
        fleet = [replace(held, models=dict([item])) for held, item in zip(fleet, fleet[0].models.items(), strict=True)]
    assert cost_rate(settings, *fleet) == simulated_cost_rate(settings, *fleet) > cost_rate(SETTINGS, *fleet)
    if placement is Placement.COLOCATED:
        assignments = [ServerAssignment(held.name, tuple(held.models.values())) for held in fleet]
        problem = replace(build_rules(settings).problems["video"], demand_rps=1.0)
        assert evaluate_fleet(problem, assignments).cost == cost_rate(settings, *fleet)


def test_each_device_that_a_server_runs_on_costs_as_a_server() -> None:
    home, further = "cpu:0", "cpu:3"
    detector = ModelState(0, 8).spread_over({home: 2, further: 1})
    wide = replace(server("a", slot=home), reach=("cpu:1", further), models={DETECTOR: detector, CLASSIFIER: ModelState(1, 8)})
    assert cost_rate(SETTINGS, wide) == simulated_cost_rate(SETTINGS, wide) == 2 * 10.0 + 4 * 1.0
    moved = replace(wide, models={DETECTOR: ModelState(0, 8).spread_over({further: 3})})
    assert cost_rate(SETTINGS, moved) == simulated_cost_rate(SETTINGS, moved) == 10.0 + 3 * 1.0
    own = replace(with_own_prices(Placement.SEPARATE), servers=())
    alone = replace(wide, models={DETECTOR: detector})
    assert cost_rate(own, alone) == simulated_cost_rate(own, alone) == 2 * 30.0 + 3 * 5.0
