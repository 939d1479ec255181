"""What a model calls inside the server: the steps of an ensemble, by its config.pbtxt, and the callees that `calls` names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from themis_triton.core.config import StageCalls
from themis_triton.core.graph import Calls, series
from themis_triton.settings.loading import Loaded
from themis_triton.settings.model_files import model_file
from themis_triton.settings.order import Arranged, arranged, with_each_stage_once
from themis_triton.settings.pipelines import StageSettings


def callees(loaded: Loaded, model: str) -> list[StageSettings]:
    """What a model calls by itself, in an order in which each comes after those whose outputs it takes; empty: nothing."""
    if model in loaded.calls:
        return list(loaded.calls[model])
    return [StageSettings(model=name) for name, _ in _steps(loaded, model)]


def is_driven_inside(loaded: Loaded, model: str) -> bool:
    """Whether a model calls others by itself."""
    return bool(callees(loaded, model))


def is_ensemble(loaded: Loaded, model: str) -> bool:
    """Whether a model is an ensemble by its config.pbtxt."""
    return bool(_steps(loaded, model))


def expand(loaded: Loaded, model: str) -> tuple[tuple[str, StageCalls], ...]:
    """The scaled models that a request to a model reaches, with its requests of each."""
    reached: dict[str, list[StageCalls]] = {}
    for name, calls in _reached(loaded, model, StageCalls(), ()):
        reached.setdefault(name, []).append(calls)
    in_turn = graph_of(loaded, model).in_turn
    return tuple((name, _together(ways, in_turn=name in in_turn)) for name, ways in reached.items())


def graph_of(loaded: Loaded, model: str) -> Arranged:
    """The order in which a request to a model passes the models of `expand`."""
    raw = _raw_graph(loaded, model, ())
    return with_each_stage_once(raw.graph, bound=raw.bound)


def ensembles(loaded: Loaded, model: str) -> dict[str, tuple[str, ...]]:
    """The ensembles that a request to a model passes, itself included, each with the scaled models that it needs."""
    names = dict.fromkeys(name for name in passed(loaded, model) if name not in loaded.section("models"))
    return {name: tuple(stage for stage, _ in expand(loaded, name)) for name in names if is_driven_inside(loaded, name)}


def _reached(loaded: Loaded, model: str, calls: StageCalls, above: tuple[str, ...]) -> Iterator[tuple[str, StageCalls]]:
    inner = callees(loaded, model) if model not in above else []
    if model in loaded.section("models") or not inner:
        yield model, calls
    for each in inner:
        yield from _reached(loaded, each.model, _within(calls, each.calls), (*above, model))


def _within(outer: StageCalls, inner: StageCalls) -> StageCalls:
    """The calls of a model that calls make."""
    most = _most(outer) * _most(inner)
    own = most if (outer.max_per_request, inner.max_per_request) != (None, None) else None
    return StageCalls(outer.per_request * inner.per_request, outer.sequential or inner.sequential, own)


def _together(ways: Sequence[StageCalls], *, in_turn: bool) -> StageCalls:
    """The calls of a model that is reached in several ways."""
    own = sum(map(_most, ways)) if any(each.max_per_request is not None for each in ways) else None
    return StageCalls(sum(each.per_request for each in ways), in_turn or any(each.sequential for each in ways), own)


def _most(calls: StageCalls) -> float:
    return calls.per_request if calls.max_per_request is None else calls.max_per_request


def _raw_graph(loaded: Loaded, model: str, above: tuple[str, ...]) -> Arranged:
    """With a model once for each way in which it is reached. What `calls` names of a model is called one after the other."""
    inner = callees(loaded, model) if model not in above else []
    parts = [_raw_graph(loaded, each.model, (*above, model)) for each in inner]
    graphs = tuple(part.graph for part in parts)
    bound = any(part.bound for part in parts)
    if not parts:
        return Arranged(model)
    steps = arranged(graphs, [waits for _, waits in _steps(loaded, model)]) if model not in loaded.calls else Arranged(series(graphs))
    whole = Calls(model, steps.graph) if model in loaded.section("models") else steps.graph
    return Arranged(whole, bound or steps.bound)


def passed(loaded: Loaded, model: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The models that a request to a model passes, itself included, ensembles too; one may come several times."""
    if model not in above:
        yield model
        for each in callees(loaded, model):
            yield from passed(loaded, each.model, (*above, model))


def _steps(loaded: Loaded, model: str) -> list[tuple[str, frozenset[int]]]:
    """The models of an ensemble's steps, each with the earlier steps that it waits for."""
    file = model_file(loaded, model)
    return _ordered(_parsed(file)) if file is not None else []


def parse_fault(loaded: Loaded, model: str) -> str | None:
    """Why the steps of an ensemble cannot be read from its file; None: they can, or it is no ensemble's."""
    file = model_file(loaded, model)
    if file is None or "ensemble_scheduling" not in file.read_text(encoding="utf-8", errors="replace"):
        return None
    from google.protobuf import text_format  # noqa: PLC0415 - only settings with ensembles need the package
    from tritonclient.grpc.model_config_pb2 import ModelConfig  # noqa: PLC0415

    try:
        text_format.Parse(file.read_text(encoding="utf-8", errors="replace"), ModelConfig())
    except text_format.ParseError as error:
        return f"{file}:{error}"
    return None


def _parsed(file: Path) -> Sequence[Any]:
    """The steps of an ensemble; none where the file is no ensemble's, or cannot be parsed (`parse_fault`)."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if "ensemble_scheduling" not in text:
        return ()
    from google.protobuf import text_format  # noqa: PLC0415 - only settings with ensembles need the package
    from tritonclient.grpc.model_config_pb2 import ModelConfig  # noqa: PLC0415

    try:
        config = text_format.Parse(text, ModelConfig())
    except text_format.ParseError:
        return ()
    return tuple(config.ensemble_scheduling.step)


def _ordered(steps: Sequence[Any]) -> list[tuple[str, frozenset[int]]]:
    """The steps' models, each step after those that make its inputs; steps that wait for each other stay in the file's order."""
    left, ordered = list(steps), list[Any]()
    while left:
        missing = {tensor for step in left for tensor in step.output_map.values()}
        step = next((step for step in left if missing.isdisjoint(step.input_map.values())), left[0])
        ordered.append(step)
        left.remove(step)
    makers = {tensor: index for index, step in enumerate(ordered) for tensor in step.output_map.values()}
    needed = [{makers[tensor] for tensor in step.input_map.values() if tensor in makers} for step in ordered]
    return [(step.model_name, frozenset(maker for maker in needed[index] if maker < index)) for index, step in enumerate(ordered)]
