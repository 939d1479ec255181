"""What follows where pipelines leave crowded servers: other servers take their requests, and few instances stay there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from themis_triton.core.decision import Clamp, ClampKind
from themis_triton.core.observation import Snapshot
from themis_triton.decide.view import PipelineView

Pairs = tuple[tuple[str, str], ...]


def pairs_left(views: Sequence[PipelineView]) -> Pairs:
    """The (server, model) pairs that need no requests, because their pipelines have left the server and have others.

    Not those of models that another pipeline uses there.
    """
    if not any([view.crowded for view in views]):  # noqa: C419 - quicker than a generator, and asked in each tick
        return ()
    used = set(_in_use(views))
    pairs = [(place.server.name, stage) for view in views if view.serves for place in view.crowded for stage in view.pipeline.stages]
    return tuple(pair for pair in dict.fromkeys(pairs) if pair not in used)


def _in_use(views: Sequence[PipelineView]) -> Iterator[tuple[str, str]]:
    for view in views:
        for place in (*(place for group in view.groups for place in group.ready), *(() if view.serves else view.crowded)):
            for stage in view.pipeline.stages:
                yield place.server.name, stage


def idle(pairs: Pairs, snapshot: Snapshot) -> Pairs:
    """Those of the pairs with no request in the server."""
    if not pairs:
        return ()
    pending = {(reading.server, model): counters.pending for reading in snapshot.readings for model, counters in reading.models.items()}
    return tuple(pair for pair in pairs if pending.get(pair, 1.0) == 0.0)


def left_by(views: Sequence[PipelineView]) -> Mapping[str, tuple[str, ...]]:
    """The crowded servers that each pipeline leaves, by the pipelines' names."""
    return {view.pipeline.name: tuple(place.server.name for place in view.crowded) for view in views if view.crowded}


def reasons(views: Sequence[PipelineView]) -> tuple[Clamp, ...]:
    """Why pipelines leave servers, or want to, a sentence each."""
    sentences = [
        f"{view.pipeline.name} leaves {servers} to other pipelines: beside their load there it would be late"
        if view.serves
        else f"{view.pipeline.name} stays on {servers} until it has another server: beside the load of other pipelines it is late there"
        for view in views
        if view.crowded and (servers := ", ".join(left_by([view]).get(view.pipeline.name, ())))
    ]
    return tuple(Clamp(ClampKind.CROWDED, sentence) for sentence in sentences)
