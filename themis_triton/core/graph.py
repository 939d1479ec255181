"""The order in which a request passes the stages of a pipeline: one after the other, side by side in branches, or one inside the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Series:
    """Each part starts when the one before it has ended."""

    parts: tuple[Graph, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """All branches start together, and what follows them starts when the last one has ended."""

    branches: tuple[Graph, ...]


@dataclass(frozen=True, slots=True)
class Calls:
    """A model that calls others by itself, and waits for them: its time contains theirs."""

    caller: str
    inside: Graph


Graph: TypeAlias = "str | Series | Parallel | Calls"
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
        for part in parts_of(graph):
            yield from stages_of(part)


def parts_of(graph: Series | Parallel | Calls) -> tuple[Graph, ...]:
    """What a graph is made of; of a caller, itself and what it calls."""
    if isinstance(graph, Calls):
        return (graph.caller, graph.inside)
    return graph.parts if isinstance(graph, Series) else graph.branches


def nested(graph: Graph) -> str | dict[str, list[Any]]:
    """The graph as JSON: a stage as its name, parts under `series`, `parallel` or `calls`, of which the first one is the caller."""
    if isinstance(graph, str):
        return graph
    key = "series" if isinstance(graph, Series) else "parallel" if isinstance(graph, Parallel) else "calls"
    return {key: [nested(part) for part in parts_of(graph)]}


def longest(graph: Graph, values: Mapping[str, float]) -> float:
    """The largest sum of the stages' values on a path: sums in series, the maximum of branches, and of a caller and what it calls."""
    total: float = folded(graph, values.__getitem__, sum, max, max)
    return total


def longest_path(graph: Graph, values: Mapping[str, float]) -> tuple[str, ...]:
    """The stages of the path with the largest sum of their values; the first of equal ones."""
    if isinstance(graph, str):
        return (graph,)
    paths = [longest_path(part, values) for part in parts_of(graph)]
    if isinstance(graph, Series):
        return tuple(stage for path in paths for stage in path)
    return max(paths, key=lambda path: sum(values[stage] for stage in path))


def width(graph: Graph) -> float:
    """The largest number of stages that can run side by side; a caller does nothing while one of its callees runs."""
    stages: float = folded(graph, lambda _: 1.0, max, sum, max)
    return stages


def beside(graph: Graph) -> dict[str, int]:
    """The largest number of other stages that run side by side with each stage."""
    if isinstance(graph, str):
        return {graph: 0}
    children = parts_of(graph)
    widths = [int(width(part)) if isinstance(graph, Parallel) else 0 for part in children]
    return {stage: own + sum(widths) - widths[index] for index, part in enumerate(children) for stage, own in beside(part).items()}


def waits(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Each stage with each of those that wait for it directly. A caller and its first callees start together."""
    return tuple(_waits(graph)[0])


def text(graph: Graph) -> str:
    """One line, as `pre → (left ∥ right) → post (calls inner)`."""
    if isinstance(graph, str):
        return graph
    if isinstance(graph, Calls):
        return f"{graph.caller} (calls {text(graph.inside)})"
    sign = " → " if isinstance(graph, Series) else " ∥ "
    return sign.join(f"({text(part)})" if isinstance(part, (Series, Parallel)) else text(part) for part in parts_of(graph))


def is_chain(graph: Graph) -> bool:
    """Whether the stages run one after the other."""
    return isinstance(graph, str) or (isinstance(graph, Series) and all(isinstance(part, str) for part in graph.parts))


def _waits(graph: Graph) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(waits, stages that start a part, stages that end it)."""
    if isinstance(graph, str):
        return [], [graph], [graph]
    parts = [_waits(part) for part in parts_of(graph)]
    found = [wait for inner, _, _ in parts for wait in inner]
    if not isinstance(graph, Series):
        return found, [stage for _, first, _ in parts for stage in first], [stage for _, _, last in parts for stage in last]
    for (_, _, last), (_, first, _) in pairwise(parts):
        found += product(last, first)
    return found, parts[0][1], parts[-1][2]


Value = TypeVar("Value")


def folded(
    graph: Graph,
    leaf: Callable[[str], Value],
    in_series: Callable[[list[Value]], Value],
    in_parallel: Callable[[list[Value]], Value],
    in_call: Callable[[list[Value]], Value],
) -> Value:
    """The value of a graph from those of its stages, of parts in series, of branches, and of a caller and what it calls."""
    if isinstance(graph, str):
        return leaf(graph)
    fold = in_series if isinstance(graph, Series) else in_parallel if isinstance(graph, Parallel) else in_call
    return fold([folded(part, leaf, in_series, in_parallel, in_call) for part in parts_of(graph)])
