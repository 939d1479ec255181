"""Plans that account for drift: the rules with scaled latency surfaces of drifted models, and the decision's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from themis_triton.core.decision import Decision
from themis_triton.core.estimate import Estimate
from themis_triton.core.record import drift_words
from themis_triton.core.replacing import replaced
from themis_triton.decide.rules import Rules
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.surface import Surface


def factors_of(estimate: Estimate, models: Iterable[str]) -> dict[str, float]:
    """The corrections of these models, as far as they were measured."""
    return {name: estimate.models[name].correction for name in models if name in estimate.models}


def with_drift(decision: Decision, estimate: Estimate) -> Decision:
    """The decision that names the models which drift, by how much, and what plans count with."""
    words = [drift_words(model) for model in estimate.models.values()]
    return replaced(decision, detail="; ".join(part for part in (decision.detail, *words) if part))


def corrected_rules(rules: Rules, factors: Mapping[str, float]) -> Rules:
    """The rules with each model's latency multiplied by its factor (above 0; 1 where absent)."""

    def scaled(problems: dict[str, ChainProblem]) -> dict[str, ChainProblem]:
        return {name: _scaled_problem(problem, factors) for name, problem in problems.items()}

    return rules.with_problems(scaled)


def _scaled_problem(problem: ChainProblem, factors: Mapping[str, float]) -> ChainProblem:
    if not any(stage.name in factors for stage in problem.stages):
        return problem
    return replaced(problem, stages=tuple(_scaled_stage(stage, factors.get(stage.name, 1.0)) for stage in problem.stages))


def _scaled_stage(stage: StageProblem, factor: float) -> StageProblem:
    if factor == 1.0:
        return stage
    means = Surface(stage.mean_surface.latency_ms * factor) if stage.mean_surface is not None else None
    return replaced(stage, surface=Surface(stage.surface.latency_ms * factor), mean_surface=means)
