"""The paper's constants give the paper's numbers, to the millisecond."""

from __future__ import annotations

import math

import pytest
from scipy.special import gammainccinv

from themis_triton.core.policy import QueueingModel
from themis_triton.solver.mixed import solve_mixed
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.queueing import erlang_quantile, gather_ms, gather_table
from themis_triton.solver.solve import solve_joint, solve_vertical
from themis_triton.solver.surface import paper_surface

Constants = tuple[float, float, float, float]
DETECTOR: Constants = (39.90889958924582, 7.784141716703453, 1.8333345492230113, 0.4507066167132669)
AUDIO: Constants = (67.8249419632761, 11.027503901723342, 24.070936392902027, 32.28070452315141)
NLP: tuple[tuple[str, Constants, float], ...] = (
    ("language-identification", (10.198960632530234, -0.17485138293060007, 13.469590595875898, 6.288354904859383), 2.0),
    ("translation", (136.47672902324115, 31.94060271850336, -6.738180020281133, 3.1005961247644223), 2.0),
    ("sentiment-analysis", (14.087047607935133, 2.3380347321626926, -1.8101831317359833, 1.442639653204678), 1.0),
)


def nlp(rate_rps: float, queueing: QueueingModel = QueueingModel.EXPONENTIAL, slo_ms: float = 700.0) -> ChainProblem:
    stages = tuple(
        StageProblem(name, paper_surface(*constants), 1, 4, 4, server_price=memory, instance_price=18.0) for name, constants, memory in NLP
    )
    return ChainProblem(
        stages,
        slo_ms,
        rate_rps,
        queueing=queueing,
        placement=Placement.SEPARATE,
        throughput=ThroughputRule.CORES,
        max_servers=10_000,
        headroom_sigmas=1.0,
        paper_rounding=True,
    )


def by_hand(constants: Constants, b: int, c: int, m: float) -> int:
    alpha, beta, gamma_, zeta = constants
    shifted = zeta + (alpha + beta + gamma_ + zeta) / 10
    return math.ceil(m * (alpha * b / c + m * beta * b + gamma_ / c + math.ceil(shifted)))


@pytest.mark.parametrize(("constants", "m"), [(DETECTOR, 1.0), (AUDIO, 1.1), *((row[1], 1.0) for row in NLP)])
def test_latency_is_the_papers_formula_in_whole_milliseconds(constants: Constants, m: float) -> None:
    surface = paper_surface(*constants, m=m, m_b=m)
    for b in range(1, 5):
        for c in range(1, 5):
            assert surface.latency_ms[b - 1, c - 1] == by_hand(constants, b, c, m)


def test_known_cells() -> None:
    assert paper_surface(*DETECTOR).latency_ms[0, 0] == 56
    assert paper_surface(*NLP[1][1]).latency_ms.tolist()[0] == [182, 117, 96, 85]


def test_waits_are_whole_milliseconds_and_constant_is_not_read_as_seconds() -> None:
    units = {model: gather_table(model, 99.0, 4) for model in QueueingModel if model is not QueueingModel.DYNAMIC_BATCHING}
    assert gather_ms(units[QueueingModel.CONSTANT][2], 50.0) == 40  # two gaps of 20 ms
    assert gather_ms(units[QueueingModel.EXPONENTIAL][2], 100.0) == math.ceil(2 * -math.log(0.01) * 10)
    assert all(gather_ms(table[0], 100.0) == 0 for table in units.values())


@pytest.mark.parametrize("shape", [1, 2, 3, 15, 63])
@pytest.mark.parametrize("tail", [0.5, 0.05, 0.01, 0.001])
def test_gamma_quantile_matches_scipy(shape: int, tail: float) -> None:
    assert erlang_quantile(shape, tail) == pytest.approx(gammainccinv(shape, tail), rel=1e-9)


def test_horizontal_plan_at_one_core() -> None:
    plan = solve_joint(nlp(100.0), instances=[1, 1, 1])
    assert [(s.servers, s.instances, s.batch) for s in plan.stages] == [(2, 1, 3), (22, 1, 1), (2, 1, 2)]
    assert plan.cost == 2 * 20 + 22 * 20 + 2 * 19
    assert plan.predicted_p99_ms == (54 + 93) + 182 + (36 + 47)
    assert plan.feasible


def test_throughput_is_floored_per_replica_and_demand_rounded() -> None:
    plan = solve_joint(nlp(100.0), instances=[1, 1, 1])
    assert [s.capacity_rps for s in plan.stages] == [2 * 55.0, 22 * 5.0, 2 * 55.0]
    assert nlp(100.0).required_capacity_rps(100.0) == 110.0


def test_vertical_plan_and_what_is_missing() -> None:
    vertical = solve_vertical(nlp(100.0), [2, 4, 1])
    assert not vertical.feasible
    assert vertical.largest_demand_rps == 49.0  # 49 + √49 = 56 = 4 replicas of 14/s with four cores and batches of four
    assert sum(s.latency_ms + s.queueing_ms for s in vertical.plan.stages) <= 700.0
    assert vertical.servers_missing == sum(vertical.stage_servers_missing)
    grown = [held + more for held, more in zip([2, 4, 1], vertical.stage_servers_missing, strict=True)]
    assert solve_vertical(nlp(100.0), grown).feasible


def test_vertical_never_prefers_fewer_cores_a_replica_to_fewer_in_total() -> None:
    """The price counts n·c: a core on the stage with many replicas is dear."""
    problem = nlp(30.0)
    plan = solve_vertical(problem, [6, 3, 1]).plan
    assert plan.feasible
    cores = sum(s.servers * s.instances for s in plan.stages)
    others = [solve_joint(problem, servers=[6, 3, 1], instances=shift) for shift in ([2, 4, 1], [1, 4, 1], [2, 4, 2])]
    assert any(other.feasible for other in others)
    assert all(sum(s.servers * s.instances for s in other.stages) >= cores for other in others if other.feasible)


def test_where_one_stage_cannot_carry_an_overload_the_others_form_batches_that_do() -> None:
    target = solve_mixed(nlp(85.0, QueueingModel.SLO_MARGIN, slo_ms=455.0), (1, 4, 1))
    first, translation, last = target.stages
    assert not target.feasible
    assert translation.capacity_rps < 85.0 <= min(first.capacity_rps, last.capacity_rps)
