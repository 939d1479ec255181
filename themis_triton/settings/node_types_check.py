"""Checks of the node types to which models are bound."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from themis_triton.core.config import Placement
from themis_triton.settings.loading import Loaded
from themis_triton.settings.problem import Problem


def check_node_types(loaded: Loaded) -> Iterator[Problem]:
    """An error for a model that is bound to a node type that does not exist, and for a pipeline whose models share none."""
    if loaded.launch is None and "launch" in loaded.source.data:
        return  # its own errors come first
    known = _known(loaded)
    for name, model in loaded.models.items():
        for index, each in enumerate(model.node_types or ()):
            if each not in known:
                close = get_close_matches(each, known, 1)
                fix = f"write {close[0]}" if close else "name the node types in launch.node_types, or `node_type` of slots in launch.slots"
                expected = " or ".join(known) or "a node type of `launch`, which has none"
                yield loaded.source.problem(("models", name, "node_types", index), f"{each} does not exist", expected, fix)
    if loaded.planning is not None and loaded.planning.placement is Placement.SEPARATE:
        return
    for name, pipeline in loaded.pipelines.items():
        stages = pipeline.chain
        bound = {stage: set(types) for stage in stages if stage in loaded.models and (types := loaded.models[stage].node_types)}
        if bound and not set.intersection(*bound.values()):
            words = ", ".join(f"{stage} to {' or '.join(sorted(types))}" for stage, types in bound.items())
            fix = "give them a node type in common, or set `planning.placement: separate`"
            fault = f"a server holds all of its models, which are bound apart: {words}"
            yield loaded.source.problem(("pipelines", name), fault, "models that one server may hold", fix)


def _known(loaded: Loaded) -> list[str]:
    launch = loaded.launch
    if launch is None:
        return []
    return list(dict.fromkeys([*launch.node_types, *(slot.node_type for slot in launch.slots or () if slot.node_type is not None)]))
