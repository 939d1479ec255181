"""`config/paper-*.yaml` give the paper's problems: a brute force written from its formulas finds the same plans."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from themis_triton.core.config import ThemisConfig
from themis_triton.core.policy import PolicyName
from themis_triton.decide.rules import build_rules
from themis_triton.planning import RatePlan, WhatIf, plan_rates
from themis_triton.settings import load_settings
from themis_triton.solver.surface import paper_surface

CONFIG = Path(__file__).parents[2] / "config"
# α, β, γ, ζ, memory GB
STAGES = {
    "video": (
        (39.90889958924582, 7.784141716703453, 1.8333345492230113, 0.4507066167132669, 2),
        (28.084275010842124, 2.626952412159743, 6.807172001409088, 0.4588339579256442, 1),
    ),
    "sentiment": (
        (67.8249419632761, 11.027503901723342, 24.070936392902027, 32.28070452315141, 2),
        (15.966355447124066, 2.5183518963351523, -0.8067341513465052, 1.2390206700475155, 1),
    ),
    "nlp": (
        (10.198960632530234, -0.17485138293060007, 13.469590595875898, 6.288354904859383, 2),
        (136.47672902324115, 31.94060271850336, -6.738180020281133, 3.1005961247644223, 2),
        (14.087047607935133, 2.3380347321626926, -1.8101831317359833, 1.442639653204678, 1),
    ),
}
SLO_MS = {"video": 300, "sentiment": 500, "nlp": 700}
FACTOR = {"video": 1.0, "sentiment": 1.1, "nlp": 1.0}
RATES = [0, 1, 2, 3, 5, 8, 13, 20, 31, 47, 64, 100, 101, 150, 183, 400]


def latency_ms(pipeline: str, stage: int, b: int, c: int) -> int:
    alpha, beta, gamma, zeta, _ = STAGES[pipeline][stage]
    m = FACTOR[pipeline]
    shifted = zeta + (alpha + beta + gamma + zeta) / 10
    return math.ceil(m * (alpha * b / c + m * beta * b + gamma / c + math.ceil(shifted)))


def wait_ms(b: int, rate: float) -> int:
    return 0 if b == 1 or rate == 0 else math.ceil((b - 1) * -math.log(0.01) * 1000 / rate)


def brute_force(pipeline: str, rate: float, slo_ms: float, cores: range) -> tuple[float, int] | None:
    """(cost, ms) of the cheapest plan, the faster of equals; None when no batches meet the SLO."""
    demand, best = round(rate + math.sqrt(rate)), None
    choices: list[list[tuple[int, int]]] = []
    for stage, row in enumerate(STAGES[pipeline]):
        choices.append([])
        for b, c in product(range(1, 5), cores):
            latency = latency_ms(pipeline, stage, b, c)
            throughput = math.floor(1000 * b / latency)
            n = max(1, math.ceil(demand / throughput))
            choices[-1].append((n * (row[4] + 18 * c), latency + wait_ms(b, rate)))
    for plan in product(*choices):
        cost, ms = (sum(column) for column in zip(*plan, strict=True))
        if ms <= slo_ms and (best is None or (cost, ms) < best):
            best = (cost, ms)
    return best


def settings_of(pipeline: str) -> ThemisConfig:
    return load_settings(CONFIG / f"paper-{pipeline}.yaml")


def answers(config: ThemisConfig, slo_ms: float | None = None) -> tuple[RatePlan, ...]:
    return plan_rates(config, [float(rate) for rate in RATES], WhatIf(slo_ms=slo_ms))


@pytest.mark.parametrize("pipeline", STAGES)
@pytest.mark.parametrize("stretch", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("policy", [PolicyName.HORIZONTAL, PolicyName.THEMIS])
def test_plans_are_those_of_a_brute_force(pipeline: str, stretch: float, policy: PolicyName) -> None:
    config = settings_of(pipeline)
    config = replace(config, policy=replace(config.policy, name=policy))
    slo_ms = stretch * SLO_MS[pipeline]
    cores = range(1, 2) if policy is PolicyName.HORIZONTAL else range(1, 5)
    for rate, answer in zip(RATES, answers(config, slo_ms), strict=True):
        expected = brute_force(pipeline, rate, slo_ms, cores)
        assert answer.feasible == (expected is not None), rate
        if expected is not None:
            assert (answer.cost, answer.predicted_p99_ms) == expected, rate


@pytest.mark.parametrize("pipeline", STAGES)
def test_the_stages_of_an_answer_add_up_to_its_cost_and_p99(pipeline: str) -> None:
    for rate, answer in zip(RATES, answers(settings_of(pipeline)), strict=True):
        demand, cost, ms = round(rate + math.sqrt(rate)), 0.0, 0
        for number, (row, stage) in enumerate(zip(STAGES[pipeline], answer.stages, strict=True)):
            latency = latency_ms(pipeline, number, stage.batch, stage.instances)
            assert stage.servers * math.floor(1000 * stage.batch / latency) >= demand
            assert stage.instances == 1
            cost += stage.servers * (row[4] + 18 * stage.instances)
            ms += latency + wait_ms(stage.batch, rate)
        assert (answer.cost, answer.predicted_p99_ms) == (cost, ms), rate


@pytest.mark.parametrize("pipeline", STAGES)
def test_an_slo_equal_to_the_sum_of_latencies_is_feasible_and_one_below_is_not(pipeline: str) -> None:
    minimum = sum(latency_ms(pipeline, stage, 1, 1) for stage in range(len(STAGES[pipeline])))
    config = settings_of(pipeline)
    assert all(answer.feasible and answer.predicted_p99_ms == minimum for answer in answers(config, minimum))
    assert not any(answer.feasible for answer in answers(config, minimum - 1))


def test_waits_are_taken_at_the_rate_and_not_at_the_demand_with_its_headroom() -> None:
    """One more request at 30/s takes 154 ms at p99; at the 35/s that capacity is planned for it would take 132."""
    (answer,) = plan_rates(settings_of("nlp"), [30.0], WhatIf())
    assert [stage.batch for stage in answer.stages] == [2, 1, 1]
    service = latency_ms("nlp", 0, 2, 1) + latency_ms("nlp", 1, 1, 1) + latency_ms("nlp", 2, 1, 1)
    assert answer.predicted_p99_ms == service + 154


@pytest.mark.parametrize("pipeline", STAGES)
def test_the_settings_surface_is_the_solvers_to_the_last_bit_and_falls_with_cores(pipeline: str) -> None:
    problem = build_rules(settings_of(pipeline)).problems[pipeline]
    for stage, row in zip(problem.stages, STAGES[pipeline], strict=True):
        alpha, beta, gamma, zeta, _ = row
        expected = paper_surface(alpha, beta, gamma, zeta, m=FACTOR[pipeline], m_b=FACTOR[pipeline]).latency_ms
        assert stage.surface.latency_ms[:4, :4].tolist() == expected.tolist()
        assert stage.surface.latency_ms[3, 3] < stage.surface.latency_ms[3, 0]
