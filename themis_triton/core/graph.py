"""The order in which a request passes the stages of a pipeline: one after the other, or side by side in branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Series:
    """Each part starts when the one before it has ended."""

    parts: tuple[Graph, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """All branches start together, and what follows them starts when the last one has ended."""

    branches: tuple[Graph, ...]


Graph: TypeAlias = "str | Series | Parallel"
"""A stage by its name, or parts that are graphs themselves; each stage stands in it once."""


def series(parts: tuple[Graph, ...]) -> Graph:
    """The parts one after the other; nested series become one."""
    flat = tuple(inner for part in parts for inner in (part.parts if isinstance(part, Series) else (part,)))
    return flat[0] if len(flat) == 1 else Series(flat)


def parallel(branches: tuple[Graph, ...]) -> Graph:
    """The branches side by side; nested ones become one level."""
    flat = tuple(inner for branch in branches for inner in (branch.branches if isinstance(branch, Parallel) else (branch,)))
    return flat[0] if len(flat) == 1 else Parallel(flat)


def stages_of(graph: Graph) -> Iterator[str]:
    """The stages from left to right."""
    if isinstance(graph, str):
        yield graph
    else:
        for part in _children(graph):
            yield from stages_of(part)


def nested(graph: Graph) -> str | dict[str, list[Any]]:
    """The graph as JSON: a stage as its name, parts under `series` or `parallel`."""
    if isinstance(graph, str):
        return graph
    return {"series" if isinstance(graph, Series) else "parallel": [nested(part) for part in _children(graph)]}


def longest(graph: Graph, values: Mapping[str, float]) -> float:
    """The largest sum of the stages' values on a path: sums in series, the maximum of branches."""
    return _folded(graph, values.__getitem__, sum, max)


def longest_path(graph: Graph, values: Mapping[str, float]) -> tuple[str, ...]:
    """The stages of the path with the largest sum of their values; the first of equal ones."""
    if isinstance(graph, str):
        return (graph,)
    paths = [longest_path(part, values) for part in _children(graph)]
    if isinstance(graph, Series):
        return tuple(stage for path in paths for stage in path)
    return max(paths, key=lambda path: sum(values[stage] for stage in path))


def width(graph: Graph) -> float:
    """The largest number of stages that can run side by side."""
    return _folded(graph, lambda _: 1.0, max, sum)


def beside(graph: Graph) -> dict[str, int]:
    """The largest number of other stages that run side by side with each stage."""
    if isinstance(graph, str):
        return {graph: 0}
    children = _children(graph)
    widths = [int(width(part)) if isinstance(graph, Parallel) else 0 for part in children]
    return {stage: own + sum(widths) - widths[index] for index, part in enumerate(children) for stage, own in beside(part).items()}


def waits(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Each stage with each of those that wait for it directly."""
    return tuple(_waits(graph)[0])


def text(graph: Graph) -> str:
    """One line, as `pre → (left ∥ right) → post`."""
    if isinstance(graph, str):
        return graph
    sign = " → " if isinstance(graph, Series) else " ∥ "
    return sign.join(part if isinstance(part, str) else f"({text(part)})" for part in _children(graph))


def is_chain(graph: Graph) -> bool:
    """Whether no stages run side by side."""
    return isinstance(graph, str) or (isinstance(graph, Series) and all(isinstance(part, str) for part in graph.parts))


def _waits(graph: Graph) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(waits, stages that start a part, stages that end it)."""
    if isinstance(graph, str):
        return [], [graph], [graph]
    parts = [_waits(part) for part in _children(graph)]
    found = [wait for inner, _, _ in parts for wait in inner]
    if isinstance(graph, Parallel):
        return found, [stage for _, first, _ in parts for stage in first], [stage for _, _, last in parts for stage in last]
    for (_, _, last), (_, first, _) in pairwise(parts):
        found += product(last, first)
    return found, parts[0][1], parts[-1][2]


_Fold: TypeAlias = "Callable[[list[float]], float]"


def _children(graph: Series | Parallel) -> tuple[Graph, ...]:
    return graph.parts if isinstance(graph, Series) else graph.branches


def _folded(graph: Graph, leaf: Callable[[str], float], in_series: _Fold, in_parallel: _Fold) -> float:
    if isinstance(graph, str):
        return leaf(graph)
    fold = in_series if isinstance(graph, Series) else in_parallel
    return fold([_folded(part, leaf, in_series, in_parallel) for part in _children(graph)])
