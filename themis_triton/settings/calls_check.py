"""Checks of what models call: a stage that clients call calls nothing itself, and a caller is a model that exists."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from themis_triton.settings.graph import is_driven_inside, is_ensemble, passed
from themis_triton.settings.loading import Loaded
from themis_triton.settings.model_files import is_folder_name, repositories
from themis_triton.settings.pipelines import PipelineSettings, StageSettings
from themis_triton.settings.problem import Problem
from themis_triton.settings.source import KeyPath


def check_calls(loaded: Loaded) -> Iterator[Problem]:
    """Every error of `calls`, and of `stages` that call others."""
    for name, pipeline in loaded.pipelines.items():
        yield from _callers_in_stages(loaded, name, pipeline)
        yield from _first_stage(loaded, name, pipeline)
    yield from _ensembles_as_models(loaded)
    yield from _unknown_models(loaded)


def _callers_in_stages(loaded: Loaded, name: str, pipeline: PipelineSettings) -> Iterator[Problem]:
    """What a stage calls by itself would be neither planned nor on launched servers."""
    stages = [stage.model for stage in pipeline.stages or ()]
    for index, stage in enumerate(stages):
        if is_driven_inside(loaded, stage):
            own = f"give {stage} a pipeline of its own, `{stage}: {{model: {stage}, slo_ms: …}}`, and remove it here"
            fix = f"write `model: {stage}` instead of `stages`" if len(stages) == 1 else own
            fault = f"{stage} calls other models by itself, which a list of stages cannot say"
            yield loaded.source.problem(("pipelines", name, "stages", index), fault, "models that clients call and that call no other", fix)


def _first_stage(loaded: Loaded, name: str, pipeline: PipelineSettings) -> Iterator[Problem]:
    """The requests of the first stage are those of the pipeline."""
    first = pipeline.stages[0] if pipeline.stages else StageSettings(model="")
    for key in ("per_request", "max_per_request"):
        number = getattr(first, key)
        if number not in (None, 1.0):
            fault = f"{number:g} is not possible for the first stage, whose requests are those of the pipeline"
            fix = "remove it, and give the later stages their requests per request of the first one"
            yield loaded.source.problem(("pipelines", name, "stages", 0, key), fault, "1", fix)


def _ensembles_as_models(loaded: Loaded) -> Iterator[Problem]:
    """An ensemble has no instances that could be changed."""
    for name in loaded.section("models"):
        if is_ensemble(loaded, name):
            fault = f"{name} is an ensemble, which has no instances of its own"
            fix = f"remove it here: a pipeline `{{model: {name}, slo_ms: …}}` reads its steps, and each of its members stands here"
            yield loaded.source.problem(("models", name), fault, "the models that run", fix, at_key=True)


def _unknown_models(loaded: Loaded) -> Iterator[Problem]:
    """Each is under `models:`, is reached by a pipeline, or lies in a model repository; without one, the server may have it."""
    fronts = [pipeline.model for pipeline in loaded.pipelines.values() if pipeline.model is not None]
    known = list(dict.fromkeys((*loaded.section("models"), *(model for front in fronts for model in passed(loaded, front)))))
    folders = [repository.folder for repository in repositories(loaded)]
    for path, model in _written(loaded):
        if model in known or (is_folder_name(model) and any((folder / model).is_dir() for folder in folders)):
            continue
        near = get_close_matches(model, known, n=1)
        if near or folders:
            fault = f"no model {model} is under `models:`, in a pipeline" + (f" or in {' or '.join(map(str, folders))}" if folders else "")
            fix = f"did you mean {near[0]}?" if near else "correct the name, or define the model under `models:`"
            yield loaded.source.problem(path, fault, "the name of a model", fix, at_key=len(path) == len(("calls", model)))


def _written(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    """Each caller and each model that it calls, with the key path."""
    for caller, stages in loaded.calls.items():
        yield ("calls", caller), caller
        for index, stage in enumerate(stages):
            yield ("calls", caller, index), stage.model
