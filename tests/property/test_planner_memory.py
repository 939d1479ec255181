"""A planner's answers do not depend on what it was asked before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import config
from themis_triton.decide import planner as planner_module
from themis_triton.decide.demand import Demand
from themis_triton.decide.plan_query import PlanQuery
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules

RULES = build_rules(config())
(PIPELINE,) = RULES.config.pipelines
rates = st.floats(0.0, 200.0)

# `st.builds` would draw the fields of a named tuple that have defaults too.
demands = st.tuples(rates, rates, st.floats(1.0, 3.0), st.sampled_from((0.0, 1.0))).map(lambda values: Demand(*values))
queries = st.tuples(
    st.just(PIPELINE.name),
    demands,
    st.sampled_from((None, (1,) * len(PIPELINE.stages))),
    st.sampled_from((0, 3, 40, 400)),  # busy elsewhere: beside the last ones not even a lone request meets the SLO
).map(lambda values: PlanQuery(*values))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(queries, st.integers(1, 4)), min_size=2, max_size=6))
def test_answers_are_those_of_a_planner_that_was_asked_nothing_before(asked: list[tuple[PlanQuery, int]]) -> None:
    planner = Planner(RULES)
    for query, servers in asked:
        assert planner.vertical(query, (servers,)) == Planner(RULES).vertical(query, (servers,))
        assert planner.carried(query, (servers,), (1,) * len(PIPELINE.stages)) == Planner(RULES).carried(
            query, (servers,), (1,) * len(PIPELINE.stages)
        )


def test_what_follows_from_known_loads_is_what_would_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many loads most lie between two with one answer."""
    asked, solved = queries_of_one_fleet(250), list[str]()
    alone = [(Planner(RULES).fewest(query), Planner(RULES).vertical(query, (1,))) for query in asked]
    for name in ("fewest_servers", "find_vertical"):
        monkeypatch.setattr(planner_module, name, noted(solved, name))
    planner = Planner(RULES)
    assert [(planner.fewest(query), planner.vertical(query, (1,))) for query in asked] == alone
    assert solved.count("fewest_servers") < 0.5 * len(asked)
    assert solved.count("find_vertical") < 0.8 * len(asked)


def queries_of_one_fleet(count: int) -> list[PlanQuery]:
    rng = np.random.default_rng(5)
    extra_rps, dispersion, busy = (rng.choice(values, count).tolist() for values in ((0.0, 3.0), (1.0, 1.25), (0, 2)))
    rows = zip(rng.uniform(20, 60, count).tolist(), extra_rps, dispersion, busy, strict=True)
    return [PlanQuery(PIPELINE.name, Demand(rate, extra, spread, 1.0), None, int(others)) for rate, extra, spread, others in rows]


def noted(calls: list[str], name: str) -> Callable[..., object]:
    """A function of the planner's module that notes its calls."""
    function = getattr(planner_module, name)

    def call(*args: object, **options: object) -> object:
        calls.append(name)
        return function(*args, **options)

    return call
