"""Servers on which other pipelines are so busy that one cannot meet its SLO there: it leaves them for other ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from themis_triton.core.config import PipelineConfig
from themis_triton.core.fleet import Place
from themis_triton.decide.planner import Planner

RETURN_FACTOR = 1.5
"""A pipeline returns to a server that it has left once it would meet its SLO there beside so many times the busy instances."""


def crowded_places(
    pipeline: PipelineConfig, places: Sequence[Place], busy: Mapping[str, int], planner: Planner, left: Collection[str]
) -> tuple[Place, ...]:
    """Those of a pipeline's whole servers on which not even a lone request meets the SLO.

    `busy`: instances of others by place, where it is known. None where that is so on an empty device too: others are not the reason then.
    """

    def is_crowded(place: Place) -> bool:
        factor = RETURN_FACTOR if place.server.name in left else 1.0
        return not planner.meets_slo_alone(pipeline.name, math.ceil(factor * busy[place.name]))

    shared = [place for place in places if not place.device and busy.get(place.name)]
    if not shared or not planner.meets_slo_alone(pipeline.name, 0):
        return ()
    return tuple(filter(is_crowded, shared))
