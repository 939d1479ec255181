"""Views that are kept from tick to tick, so that a pipeline of a large fleet of which only the demand changes costs little.

Only of pipelines with models and servers of their own: what others do cannot change their views. A cache: a kept view is what
`view_of` would make anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.state import PolicyInput, has_entry
from themis_triton.decide.view import PipelineView, age_s


@dataclass(slots=True)
class _Kept:
    """The newest view, the servers that hold each of its stages, and each stage's correction, calls and sizes."""

    view: PipelineView
    holders: Sequence[Sequence[Server]]
    measured: tuple[object, ...]


@dataclass(slots=True)
class KeptViews:
    """The last view of each pipeline that depends on nothing but its own servers and demand."""

    config: ThemisConfig
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _alone: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Find the pipelines that share no model and keep no state between calls."""
        pipelines = self.config.pipelines
        users = Counter(model for each in pipelines for model in {*each.stages, each.front})
        alone = [each for each in pipelines if all(users[model] == 1 for model in {*each.stages, each.front})]
        self._alone = frozenset(each.name for each in alone if not self.config.is_stateful(each))

    def again(
        self,
        pipeline: PipelineConfig,
        policy_input: PolicyInput,
        devices: FreeDevices,
        left: Mapping[str, tuple[str, ...]],
        *,
        in_turn: bool,
    ) -> PipelineView | None:
        """The view of this tick where nothing but the demand and the free slots differs from the kept one, else None."""
        kept = self._kept.get(pipeline.name)
        if kept is None or pipeline.name in left or not _is_plain(pipeline, policy_input):
            return None
        if kept.holders != _holders(pipeline, policy_input) or kept.measured != _measured(pipeline, policy_input):
            return None
        # An older one would keep the estimates of all models of its tick.
        kept.view = _at(kept.view, policy_input, devices, in_turn=in_turn)
        return kept.view

    def keep(self, view: PipelineView, policy_input: PolicyInput) -> PipelineView:
        """The view, as one that is `alone` and is kept where it depends on nothing else."""
        pipeline = view.pipeline
        if pipeline.name not in self._alone or view.crowded or not _is_plain(pipeline, policy_input):
            self._kept.pop(pipeline.name, None)
            return view
        holders, own = _holders(pipeline, policy_input), frozenset(pipeline.stages)
        if all(_is_own(server, own, pipeline.entry) for each in holders for server in each):
            view = replace(view, alone=True)
            self._kept[pipeline.name] = _Kept(view, holders, _measured(pipeline, policy_input))
        return view


def _is_plain(pipeline: PipelineConfig, policy_input: PolicyInput) -> bool:
    """Whether no call and nothing else of the moment concerns the pipeline's servers."""
    if policy_input.snapshot.loading or any(policy_input.estimate.pipelines[pipeline.name].others):
        return False
    return policy_input.open_models.isdisjoint(pipeline.stages)


def _is_own(server: Server, own: frozenset[str], entry: str | None) -> bool:
    return not server.reach and not server.stateful and server.models.keys() <= own and has_entry(server, entry)


def _holders(pipeline: PipelineConfig, policy_input: PolicyInput) -> list[Sequence[Server]]:
    return [policy_input.servers_by_model.get(stage, ()) for stage in pipeline.stages]


def _measured(pipeline: PipelineConfig, policy_input: PolicyInput) -> tuple[object, ...]:
    models, estimate = policy_input.estimate.models, policy_input.estimate.pipelines[pipeline.name]
    return estimate.per_request, estimate.sizes, *[models[stage].correction if stage in models else None for stage in pipeline.stages]


def _at(view: PipelineView, policy_input: PolicyInput, devices: FreeDevices, *, in_turn: bool) -> PipelineView:
    """The view with the demand of this tick; what was derived from the rest stays known."""
    now, pipeline = object.__new__(PipelineView), view.pipeline
    now.__dict__.update(
        view.__dict__,
        estimate=policy_input.estimate.pipelines[pipeline.name],
        at_s=policy_input.snapshot.at_s,
        free_slots=max([len(devices.slots_for(group.names)) for group in view.groups]),
        models=policy_input.estimate.models,
        ended=policy_input.estimate.ended.get(pipeline.name, NOTHING_ENDED),
        age_s=age_s(pipeline, policy_input, view.rules),
        in_turn=in_turn,
    )
    return now


NOTHING_ENDED = EndedRequests()
