"""What `overload` of a pipeline asks of the other settings."""

from __future__ import annotations

from collections.abc import Iterator

from themis_triton.core.config import Overload
from themis_triton.settings.loading import Loaded
from themis_triton.settings.pipelines import PipelineSettings
from themis_triton.settings.problem import Problem


def check_overload(loaded: Loaded) -> Iterator[Problem]:
    """An error for each pipeline whose requests cannot be refused, or served last, on their own."""
    for name, pipeline in loaded.pipelines.items():
        if pipeline.overload is Overload.SHED:
            yield from _front(loaded, name, pipeline)
        elif pipeline.overload is Overload.DEPRIORITIZE:
            yield from _delayed(loaded, name, pipeline)


def _front(loaded: Loaded, name: str, pipeline: PipelineSettings) -> Iterator[Problem]:
    """Requests are refused by the model that they call, so no other pipeline's requests may call it."""
    if not pipeline.chain:
        return
    front = pipeline.chain[0]
    for other, another in loaded.pipelines.items():
        if other != name and front in another.chain:
            fault = f"shed cannot tell requests of {name} from those of {other}: clients call {front} for both"
            expected = "a first model that clients call for this pipeline alone"
            yield loaded.source.problem(("pipelines", name, "overload"), fault, expected, "use queue, or serve a copy of the model")


def _delayed(loaded: Loaded, name: str, pipeline: PipelineSettings) -> Iterator[Problem]:
    """Only launched servers delay requests, and only those of models that batch."""
    path = ("pipelines", name, "overload")
    if loaded.launch is None:
        fix = "use shed or queue; for an adopted server set Triton's `default_queue_policy` in the model's config.pbtxt"
        yield loaded.source.problem(path, "deprioritize has no effect on adopted servers", "a section `launch`", fix)
    batches = [loaded.models[stage].max_batch for stage in pipeline.chain if stage in loaded.models]
    if batches and len(batches) == len(pipeline.chain) and max(batches) == 1:
        expected = "a stage with a max_batch of at least 2"
        yield loaded.source.problem(path, "deprioritize has no effect on models that form no batches", expected, "use shed or queue")
