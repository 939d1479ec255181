"""A planner's answers do not depend on what it was asked before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import config
from themis_triton.decide.demand import Demand
from themis_triton.decide.planner import Planner, PlanQuery
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
