"""Edges on which simple implementations trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from themis_triton.core.config import LatencyTable
from themis_triton.core.errors import SolverError
from themis_triton.core.policy import QueueingModel
from themis_triton.solver.mixed import solve_mixed
from themis_triton.solver.plans import Binding, RunnerUp
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.solve import evaluate, largest_demand, solve_joint, solve_vertical
from themis_triton.solver.surface import Surface, contention_surface, surface_from_table


def video(rate_rps: float = 100.0, **changes: Any) -> ChainProblem:
    stages = (
        StageProblem("detector", contention_surface(4, 8, 4, 20, 8, 16)),
        StageProblem("classifier", contention_surface(2, 4, 2, 10, 8, 16)),
    )
    return replace(ChainProblem(stages, 300.0, rate_rps, headroom_sigmas=1.0), **changes)


def lone(milliseconds: float, **changes: Any) -> ChainProblem:
    stage = StageProblem("lone", Surface(np.array([[milliseconds]])), 1, 1, 1)
    return replace(ChainProblem((stage,), 100.0, 1.0, queueing=QueueingModel.CONSTANT), **changes)


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("queueing", QueueingModel)
@pytest.mark.parametrize("throughput", ThroughputRule)
def test_no_load_gives_the_bounds_minimum_as_a_whole_plan(
    placement: Placement, queueing: QueueingModel, throughput: ThroughputRule
) -> None:
    stages = tuple(replace(stage, min_instances=2) for stage in video().stages)
    plan = solve_joint(video(0.0, stages=stages, placement=placement, queueing=queueing, throughput=throughput))
    assert plan.feasible
    assert [(s.name, s.servers, s.instances, s.batch) for s in plan.stages] == [("detector", 1, 2, 1), ("classifier", 1, 2, 1)]
    assert plan.binding is Binding.BOUNDS


def test_no_load_with_a_fixed_batch_keeps_that_batch() -> None:
    plan = solve_joint(video(0.0), batches=[[8], [4]])
    assert plan.feasible
    assert [s.batch for s in plan.stages] == [8, 4]


def test_slo_equal_to_the_sum_of_latencies_is_feasible() -> None:
    stages = tuple(StageProblem(f"stage-{ms}", Surface(np.array([[ms]])), 1, 1, 1) for ms in (0.1, 0.2))
    problem = ChainProblem(stages, 0.1 + 0.2, 1.0, queueing=QueueingModel.CONSTANT)
    assert solve_joint(problem).feasible
    assert solve_joint(replace(problem, slo_ms=0.3)).feasible
    assert solve_joint(replace(problem, slo_ms=0.2999)).binding is Binding.LATENCY


def test_capacity_equal_to_the_demand_is_feasible() -> None:
    assert solve_joint(lone(10.0, demand_rps=300.0, max_servers=3)).feasible
    assert solve_joint(lone(10.0, demand_rps=301.0, max_servers=3)).binding is Binding.DEVICES


def test_capacity_counts_by_the_means_where_they_are_known() -> None:
    slow = lone(40.0, demand_rps=50.0)
    known = replace(slow, stages=(replace(slow.stages[0], mean_surface=Surface(np.array([[20.0]]))),))
    assert [solve_joint(problem).stages[0].servers for problem in (slow, known)] == [2, 1]
    assert solve_joint(known).predicted_p99_ms == solve_joint(slow).predicted_p99_ms == 40.0
    assert [solve_mixed(replace(problem, placement=Placement.SEPARATE), [1]).feasible for problem in (slow, known)] == [False, True]


@pytest.mark.parametrize("placement", Placement)
def test_equal_costs_go_to_the_lower_predicted_p99(placement: Placement) -> None:
    stage = StageProblem("tie", Surface(np.array([[30.0, 20.0], [35.0, 25.0]])), 1, 2, 2, server_price=5.0, instance_price=0.0)
    problem = ChainProblem(
        (stage, replace(stage, name="other")),
        500.0,
        10.0,
        queueing=QueueingModel.CONSTANT,
        throughput=ThroughputRule.CORES,
        placement=placement,
    )
    plan = solve_joint(problem)
    assert plan.predicted_p99_ms == 40.0
    assert [(s.instances, s.batch) for s in plan.stages] == [(2, 1), (2, 1)]


def test_a_single_stage_is_a_chain_of_one() -> None:
    plan = solve_joint(lone(10.0, demand_rps=250.0))
    assert plan.feasible
    assert plan.stages[0].servers == 3


def test_nothing_feasible_at_all_ends_and_says_why() -> None:
    vertical = solve_vertical(lone(500.0), 2)
    assert not vertical.feasible
    assert vertical.largest_demand_rps == 0.0
    assert vertical.servers_missing is None
    assert vertical.plan.binding is Binding.LATENCY
    assert len(vertical.plan.stages) == 1
    assert largest_demand(lone(500.0), 2) == -1


def test_memory_binds() -> None:
    stages = tuple(replace(stage, instance_memory_bytes=2**30) for stage in video().stages)
    tight = solve_joint(video(45.0, stages=stages, device_memory_bytes=2 * 2**30, max_servers=1))
    roomy = solve_joint(video(45.0, stages=stages, device_memory_bytes=16 * 2**30, max_servers=1))
    assert roomy.feasible
    assert not tight.feasible
    assert tight.binding is Binding.MEMORY
    assert sum(s.instances for s in tight.stages) == 2


def test_devices_bind_and_the_best_effort_stays_inside_them() -> None:
    plan = solve_joint(video(1000.0, max_servers=3))
    assert not plan.feasible
    assert plan.binding is Binding.DEVICES
    assert plan.servers <= 3
    assert plan.predicted_p99_ms <= 300.0


def test_huge_demand_is_an_answer_not_an_error() -> None:
    for placement in Placement:
        plan = solve_joint(video(1e8, placement=placement))
        assert not plan.feasible
        assert len(plan.stages) == 2


def test_servers_missing_carry_the_headroom_too() -> None:
    problem = video(150.0)
    vertical = solve_vertical(problem, 1)
    assert not vertical.feasible
    assert vertical.servers_missing is not None
    assert solve_vertical(problem, 1 + vertical.servers_missing).feasible
    assert not solve_vertical(problem, vertical.servers_missing).feasible


def test_more_load_predicts_more_wait_and_saturation_is_not_feasible() -> None:
    predicted = [evaluate(video(), 2, [2, 2], [4, 4], rate_rps=rate).predicted_p99_ms for rate in (5, 40, 80, 110, 120)]
    assert predicted == sorted(predicted)
    assert predicted[-1] > 2 * predicted[0]
    assert not evaluate(video(), 2, [2, 2], [4, 4], rate_rps=1000).feasible


def test_evaluate_agrees_with_the_plan_that_it_came_from() -> None:
    for placement in Placement:
        problem = video(90.0, placement=placement)
        plan = solve_joint(problem)
        servers = plan.servers if placement is Placement.COLOCATED else [s.servers for s in plan.stages]
        judged = evaluate(problem, servers, [s.instances for s in plan.stages], [s.batch for s in plan.stages])
        assert judged.feasible
        assert judged.cost == pytest.approx(plan.cost)
        assert judged.predicted_p99_ms == pytest.approx(plan.predicted_p99_ms)
        assert judged.stages == plan.stages


def test_evaluate_takes_counts_beyond_the_plans_bounds() -> None:
    assert evaluate(video(), 1, [20, 9], [16, 8]).capacity_rps > 0


def test_instances_never_shrink_below_what_is_asked() -> None:
    plan = solve_vertical(video(5.0), 2, min_instances=[3, 2]).plan
    assert [s.instances for s in plan.stages] == [3, 2]


def test_batches_can_be_held_to_what_runs() -> None:
    plan = solve_joint(video(60.0), batches=[[8], None])
    assert plan.stages[0].batch == 8


def test_runner_up_is_dearer_or_no_faster_and_says_so() -> None:
    plan = solve_joint(video(60.0))
    assert plan.runner_up is not None
    assert plan.runner_up.servers != plan.servers
    assert plan.runner_up.cost >= plan.cost
    assert "more" in plan.runner_up.sentence(plan.cost)
    assert RunnerUp(1, 9.0, 250.4).sentence(7.0, "device") == "1 device with a predicted p99 of 250 ms costs 2 more"
    assert RunnerUp(2, 7.0, 250.4).sentence(7.0) == "2 servers with a predicted p99 of 250 ms costs the same and is no faster"


def test_a_demand_ratio_scales_the_stage() -> None:
    stages = (video().stages[0], replace(video().stages[1], demand_ratio=3.0))
    judged = evaluate(video(10.0, stages=stages), 2, [2, 2], [8, 8])
    assert judged.capacity_rps == pytest.approx(min(judged.stages[0].capacity_rps, judged.stages[1].capacity_rps / 3))


def test_requests_at_once_wait_for_each_other_and_those_in_turn_add_up() -> None:
    def p99(ratio: float, in_turn: float = 1.0, instances: int = 1) -> float:
        stages = (replace(video().stages[0], demand_ratio=ratio, in_turn=in_turn),)
        return evaluate(video(1e-6, stages=stages), 1, [instances], [1]).predicted_p99_ms

    alone = p99(1.0)
    assert p99(4.0) == pytest.approx(4 * alone)  # one instance takes them one by one
    assert p99(4.0, instances=4) == pytest.approx(p99(1.0, instances=4))
    assert p99(4.0, in_turn=4.0) == pytest.approx(4 * alone)
    assert p99(4.0, in_turn=4.0, instances=4) == pytest.approx(4 * p99(1.0, instances=4))


def test_calls_in_turn_are_at_least_one() -> None:
    with pytest.raises(SolverError, match=r"0\.5 calls in turn; allowed is at least 1"):
        replace(video().stages[0], in_turn=0.5)


def test_table_is_interpolated_extended_and_repaired() -> None:
    table = LatencyTable((1, 4), (1, 2), ((10.0, 14.0), (40.0, 13.0)))
    surface = surface_from_table(table, 5, 4)
    assert surface.latency_ms[1, 0] == 20.0
    assert surface.latency_ms[3, 1] == 40.0  # 13 ms at two busy instances would be faster than at one
    assert surface.latency_ms[4, 0] == 50.0
    assert surface.latency_ms[0].tolist() == [10.0, 14.0, 18.0, 22.0]
    assert np.all(np.diff(surface.latency_ms, axis=0) >= 0)
    assert np.all(np.diff(surface.latency_ms, axis=1) >= 0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Surface(np.array([[1.0, np.inf]])), "finite"),
        (lambda: Surface(np.array([[0.0]])), "above 0"),
        (lambda: surface_from_table(LatencyTable((1, 2), (1,), ((1.0,),)), 2, 2), "2 × 1"),
        (lambda: surface_from_table(LatencyTable((2, 1), (1,), ((1.0,), (2.0,))), 2, 2), "rise strictly"),
        (lambda: ChainProblem((), 100.0, 1.0), "at least one stage"),
        (lambda: lone(1.0, demand_rps=-1.0), "demand"),
        (lambda: lone(1.0, demand_rps=float("nan")), "demand"),
        (lambda: lone(1.0, slo_ms=0.0), "SLO"),
        (lambda: lone(1.0, percentile=100.0), "percentile"),
        (lambda: lone(1.0, max_servers=0), "servers"),
        (lambda: replace(video().stages[0], min_instances=9), "instances 9..8"),
        (lambda: replace(video().stages[0], server_price=-1.0), "negative"),
        (lambda: solve_joint(video(), batches=[[9], None]), "batch sizes"),
        (lambda: solve_joint(video(), instances=[9, 1]), "9 instances"),
        (lambda: solve_joint(video(), servers=[1, 2]), "one number"),
    ],
)
def test_malformed_problems_are_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(SolverError, match=named):
        make()


def test_what_a_call_fixes_is_a_bound_too() -> None:
    idle = video(0.0)
    assert solve_joint(idle, instances=[2, 3]).binding is Binding.BOUNDS
    assert solve_vertical(idle, 3).plan.binding is Binding.BOUNDS


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("queueing", [QueueingModel.DYNAMIC_BATCHING, QueueingModel.CENTRAL_QUEUE, QueueingModel.GAMMA])
@pytest.mark.parametrize("throughput", ThroughputRule)
def test_other_requests_of_every_stage_count_as_the_chains_own(
    placement: Placement, queueing: QueueingModel, throughput: ThroughputRule
) -> None:
    rules = {"placement": placement, "queueing": queueing, "throughput": throughput, "slo_ms": 900.0, "max_servers": 12}
    alone = solve_joint(video(150.0, **rules))
    shared = solve_joint(video(90.0, other_rps=(60.0, 60.0), **rules))
    assert alone.feasible
    for own, summed in zip(alone.stages, shared.stages, strict=True):
        assert (own.servers, own.instances, own.batch) == (summed.servers, summed.instances, summed.batch)
        assert own.queueing_ms == pytest.approx(summed.queueing_ms)
    assert shared.capacity_rps == pytest.approx(alone.capacity_rps - 60.0)


def test_other_requests_of_one_stage_need_capacity_of_that_stage_alone() -> None:
    alone, shared = solve_joint(video(60.0, slo_ms=900.0)), solve_joint(video(60.0, slo_ms=900.0, other_rps=(0.0, 150.0)))
    assert shared.stages[0].capacity_rps >= 60.0
    assert shared.stages[1].capacity_rps >= 210.0 > alone.stages[1].capacity_rps


@pytest.mark.parametrize("other_rps", [(1.0,), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0)])
def test_other_requests_are_one_rate_a_stage(other_rps: tuple[float, ...]) -> None:
    with pytest.raises(SolverError, match="one finite rate of at least 0 for each stage"):
        video(other_rps=other_rps)
