"""From the order in which steps wait for each other to a series-parallel graph of stages, exact or as an upper bound of its latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from themis_triton.core.graph import Calls, Graph, Parallel, Series, parallel, parts_of, series, stages_of


@dataclass(frozen=True, slots=True)
class Arranged:
    """A graph; `bound`: it makes some stages wait that do not. `in_turn`: stages that stood in it several times, on one path."""

    graph: Graph
    bound: bool = False
    in_turn: frozenset[str] = frozenset()


def arranged(steps: Sequence[Graph], waits_for: Sequence[frozenset[int]]) -> Arranged:
    """The graph of steps of which each waits for earlier ones of the sequence.

    Where the order is not series-parallel (`c` waits for `a` and `b`, but `d` for `b` alone), it is cut into two layers, of which the
    later one waits for all of the earlier one: at the depth that adds the fewest waits.
    """
    before: list[frozenset[int]] = []
    for direct in waits_for:
        before.append(direct.union(*(before[step] for step in direct)))
    return _arranged(tuple(range(len(steps))), steps, before)


def _arranged(members: tuple[int, ...], steps: Sequence[Graph], before: Sequence[frozenset[int]]) -> Arranged:
    if len(members) == 1:
        return Arranged(steps[members[0]])
    branches = _components(members, lambda a, b: a in before[b])
    layers = _components(members, lambda a, b: a not in before[b]) if len(branches) == 1 else []
    bound = len(branches) == len(layers) == 1
    if bound:
        layers = _cut(members, before)
    parts = [_arranged(part, steps, before) for part in layers or branches]
    join = series if layers else parallel
    return Arranged(join(tuple(part.graph for part in parts)), bound or any(part.bound for part in parts))


def _components(members: tuple[int, ...], linked: Callable[[int, int], bool]) -> list[tuple[int, ...]]:
    """The members' connected sets, by their first ones; `linked(a, b)` is asked with a before b."""
    sets: list[tuple[int, ...]] = []
    for member in members:
        joined = [each for each in sets if any(linked(other, member) for other in each)]
        sets = [each for each in sets if each not in joined]
        sets.append(tuple(sorted(sum(joined, (member,)))))
    return sorted(sets)


def _cut(members: tuple[int, ...], before: Sequence[frozenset[int]]) -> list[tuple[int, ...]]:
    depth: dict[int, int] = {}
    for member in members:
        depth[member] = 1 + max((depth[step] for step in before[member] if step in depth), default=-1)

    def halves(level: int) -> list[tuple[int, ...]]:
        early = tuple(member for member in members if depth[member] < level)
        return [early, tuple(member for member in members if member not in early)]

    def added(level: int) -> int:
        early, late = halves(level)
        return sum(a not in before[b] for a in early for b in late)

    return halves(min(range(1, max(depth.values()) + 1), key=added))


def with_each_stage_once(graph: Graph, *, bound: bool) -> Arranged:
    """The same graph with a stage that stands in it several times at one place, before what it cannot be told apart from."""
    stages = list(stages_of(graph))
    in_turn = set[str]()
    for stage in dict.fromkeys(each for each in stages if stages.count(each) > 1):
        merged = _merged(graph, stage)
        graph, bound, in_turn = merged.graph, bound or merged.bound, in_turn | merged.in_turn
    return Arranged(graph, bound, frozenset(in_turn))


def _merged(graph: Graph, stage: str) -> Arranged:
    """Calls one after the other and calls of one moment stay exact; other ones are put in front of the smallest part with all of them."""
    if isinstance(graph, str):
        return Arranged(graph)
    parts = parts_of(graph)
    holders = [index for index, part in enumerate(parts) if stage in stages_of(part)]
    if len(holders) == 1:
        inner = _merged(parts[holders[0]], stage)
        joined = _like(graph, (*parts[: holders[0]], inner.graph, *parts[holders[0] + 1 :]))
        return Arranged(joined, inner.bound, inner.in_turn)
    repeated = list(stages_of(parts[holders[0]]))
    same = not isinstance(graph, Calls) and all(parts[index] == parts[holders[0]] for index in holders)
    if same and len(set(repeated)) == len(repeated):
        kept = tuple(part for index, part in enumerate(parts) if index not in holders[1:])
        return Arranged(_like(graph, kept), in_turn=frozenset() if isinstance(graph, Parallel) else frozenset(repeated))
    rest = _without(graph, stage)
    return Arranged(stage if rest is None else series((stage, rest)), bound=True, in_turn=frozenset({stage}))


def _without(graph: Graph, stage: str) -> Graph | None:
    if isinstance(graph, str):
        return None if graph == stage else graph
    kept = tuple(part for part in (_without(part, stage) for part in parts_of(graph)) if part is not None)
    return _like(graph, kept) if kept else None


def _like(graph: Series | Parallel | Calls, parts: tuple[Graph, ...]) -> Graph:
    """The parts put together as in a graph. What is left of a caller and its callees stands alone."""
    if isinstance(graph, Calls):
        return Calls(graph.caller, parts[1]) if len(parts) > 1 else parts[0]
    return series(parts) if isinstance(graph, Series) else parallel(parts)
