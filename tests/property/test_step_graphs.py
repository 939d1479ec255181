"""The order of an ensemble's steps as a graph, against the longest path through the waits themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.solver_problems import random_graph
from themis_triton.core.graph import Calls, Graph, Parallel, Series, longest, stages_of
from themis_triton.settings.order import arranged, with_each_stage_once


def waits_of(graph: Graph, index: dict[str, int], after: frozenset[int], waits: dict[int, frozenset[int]]) -> frozenset[int]:
    """Write what each stage waits for, the part itself starting after `after`; the stages that end the part."""
    if isinstance(graph, str):
        waits[index[graph]] = after
        return frozenset({index[graph]})
    if isinstance(graph, Parallel):
        return frozenset().union(*(waits_of(branch, index, after, waits) for branch in graph.branches))
    assert isinstance(graph, Series)
    for part in graph.parts:
        after = waits_of(part, index, after, waits)
    return after


def end_ms(waits: list[frozenset[int]], ms: list[float]) -> float:
    """When the last step ends, each step starting with the end of the last one that it waits for."""
    ends = list[float]()
    for step, own in zip(waits, ms, strict=True):
        ends.append(own + max((ends[other] for other in step), default=0.0))
    return max(ends)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_a_series_parallel_order_is_read_exactly(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in range(count)]
    graph, index = random_graph(rng, names), {name: number for number, name in enumerate(names)}
    waits: dict[int, frozenset[int]] = {}
    waits_of(graph, index, frozenset(), waits)
    read = arranged(names, [waits[number] for number in range(count)])
    assert not read.bound
    for _ in range(5):
        ms = rng.integers(0, 50, count).tolist()
        assert longest(read.graph, dict(zip(names, ms, strict=True))) == end_ms([waits[number] for number in range(count)], ms)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9), density=st.floats(0, 1))
def test_any_order_is_bounded_from_above_and_exactly_where_no_bound_is_said(seed: int, count: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in range(count)]
    waits = [frozenset(np.flatnonzero(rng.random(step) < density).tolist()) for step in range(count)]
    read = arranged(names, waits)
    assert sorted(stages_of(read.graph)) == names
    for _ in range(5):
        ms = rng.integers(0, 50, count).tolist()
        planned, real = longest(read.graph, dict(zip(names, ms, strict=True))), end_ms(waits, ms)
        assert planned >= real
        assert read.bound or planned == real


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8))
def test_a_stage_that_stands_in_a_graph_several_times_is_never_planned_faster(seed: int, count: int) -> None:
    """Its calls, one after the other or all of one moment, take as long as they do where it stands in the graph, or longer."""
    rng = np.random.default_rng(seed)
    places = [f"s{number}" for number in range(count)]
    graph, model_of = random_graph(rng, places, callers=0.25), {place: f"m{rng.integers(0, 4)}" for place in places}
    once = with_each_stage_once(renamed(graph, model_of), bound=False)
    models = list(stages_of(once.graph))
    assert sorted(models) == sorted(set(model_of.values()))
    calls = {model: list(model_of.values()).count(model) for model in models}
    for _ in range(5):
        ms = {model: float(rng.integers(0, 50)) for model in models}
        planned = longest(once.graph, {model: ms[model] * (calls[model] if model in once.in_turn else 1) for model in models})
        real = longest(graph, {place: ms[model_of[place]] for place in places})
        assert planned >= real
        assert once.bound or planned == real


def renamed(graph: Graph, names: dict[str, str]) -> Graph:
    if isinstance(graph, str):
        return names[graph]
    if isinstance(graph, Series):
        return Series(tuple(renamed(part, names) for part in graph.parts))
    if isinstance(graph, Calls):
        return Calls(names[graph.caller], renamed(graph.inside, names))
    return Parallel(tuple(renamed(branch, names) for branch in graph.branches))
