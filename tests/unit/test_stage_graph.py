"""Stages in series and side by side: their order, and what it does to latency, tails and plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from themis_triton.core.config import Placement
from themis_triton.core.errors import SolverError
from themis_triton.core.fleet import ModelState
from themis_triton.core.graph import Calls, Parallel, Series, beside, is_chain, longest, parallel, series, stages_of, text, waits, width
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet
from themis_triton.solver.pack import pack
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.queueing import TAIL
from themis_triton.solver.solve import evaluate, solve_joint
from themis_triton.solver.surface import contention_surface

DIAMOND = Series(("first", Parallel((Series(("left", "more")), "right")), "last"))
MS = {"first": 1.0, "left": 10.0, "more": 5.0, "right": 12.0, "last": 2.0}
STAGES = tuple(StageProblem(name, contention_surface(0, 1, 0, ms, 4, 40), 1, 4, 4) for name, ms in MS.items())


def test_a_graph_reads_as_its_paths() -> None:
    assert list(stages_of(DIAMOND)) == list(MS)
    assert text(DIAMOND) == "first → ((left → more) ∥ right) → last"
    assert longest(DIAMOND, MS) == 18.0
    assert longest(DIAMOND, {**MS, "right": 20.0}) == 23.0
    assert (width(DIAMOND), width(Parallel((DIAMOND, "other"))), width("one")) == (2.0, 3.0, 1.0)
    assert not is_chain(DIAMOND)
    assert is_chain("one")
    assert is_chain(Series(("one", "two")))


def test_a_stage_waits_for_all_that_end_the_part_before_it() -> None:
    assert set(waits(DIAMOND)) == {("first", "left"), ("first", "right"), ("left", "more"), ("more", "last"), ("right", "last")}
    assert waits(Parallel(("a", "b"))) == ()


def test_a_caller_contains_what_it_calls() -> None:
    graph = Series(("first", Parallel((Calls("left", Parallel(("more", "right"))), "last"))))
    assert text(graph) == "first → (left (calls more ∥ right) ∥ last)"
    assert (longest(graph, MS), longest(graph, {**MS, "right": 9.0})) == (13.0, 11.0)
    assert (width(graph), beside(graph)) == (3.0, {"first": 0, "left": 1, "more": 2, "right": 2, "last": 2})
    assert set(waits(graph)) == {("first", stage) for stage in ("left", "more", "right", "last")}
    assert not is_chain(Calls("first", "last"))


def test_nested_series_and_branches_become_one_level() -> None:
    assert series((Series(("a", "b")), "c")) == Series(("a", "b", "c"))
    assert parallel((Parallel(("a", "b")), Series(("c", "d")))) == Parallel(("a", "b", Series(("c", "d"))))
    assert series(("a",)) == parallel(("a",)) == "a"


@pytest.mark.parametrize("placement", Placement)
def test_the_longest_path_meets_the_slo_where_the_chain_would_not(placement: Placement) -> None:
    chain = ChainProblem(STAGES, 25.0, 1.0, placement=placement, max_servers=5)
    plan = solve_joint(replace(chain, graph=DIAMOND))
    assert not solve_joint(chain).feasible
    assert plan.feasible
    sizes = [stage.servers for stage in plan.stages], [stage.instances for stage in plan.stages], [stage.batch for stage in plan.stages]
    servers = plan.servers if placement is Placement.COLOCATED else sizes[0]
    evaluation = evaluate(replace(chain, graph=DIAMOND), servers, *sizes[1:])
    assert plan.predicted_p99_ms == pytest.approx(evaluation.predicted_p99_ms)
    assert plan.predicted_p99_ms == pytest.approx(longest(DIAMOND, {s.name: s.latency_ms + s.queueing_ms for s in plan.stages}))


def test_servers_that_differ_are_as_fast_as_their_longest_path() -> None:
    problem = ChainProblem(STAGES, 25.0, 0.0, graph=DIAMOND)
    fleet = [ServerAssignment(name, (ModelState(1, 1),) * 5) for name in ("a", "b")]
    assert evaluate_fleet(problem, fleet).predicted_p99_ms == pytest.approx(18.0 + 4)  # each batch of one costs 1 ms
    assert evaluate_fleet(replace(problem, graph=None), fleet).predicted_p99_ms == pytest.approx(30.0 + 5)


def test_each_of_two_branches_stands_at_half_of_the_tail() -> None:
    """Either may be late: each is taken at half of the tail of a chain that is as long as the longest path."""
    path = ChainProblem(STAGES[:4], 100.0, 1.0)
    assert pack(ChainProblem(STAGES, 100.0, 1.0, graph=DIAMOND)).rate[TAIL] == pytest.approx(pack(path).rate[TAIL] / 2)


def test_a_graph_holds_each_stage_once() -> None:
    with pytest.raises(SolverError, match="expected each of the stages once"):
        ChainProblem(STAGES, 100.0, 1.0, graph=Series(("first", "first")))
