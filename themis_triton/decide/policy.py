"""A policy as one record: its function, its requirements, and its start in an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from themis_triton.core.config import ThemisConfig
from themis_triton.core.estimate import WORK_WINDOW_S
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide.proposal import PolicyResult
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.solver.problem import ChainProblem


@dataclass(frozen=True, slots=True)
class Load:
    """The load that an evaluation knows in advance: the maximum rate of the trace's start and of the whole trace (requests/s)."""

    first_rps: float
    peak_rps: float


def _unchanged(config: PolicyConfig, _: Load) -> PolicyConfig:
    return config


def _free(_: PolicyConfig, __: ChainProblem) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy, registered once in `themis_triton.policies`.

    `propose`: one pipeline's proposal of a tick. `needs_arrivals_per_second`: estimates keep a minute of arrivals for it.
    `work_window_s`: the window of the servers' queue and compute times.
    `holds_to_predictions`: it takes nothing away on predictions that do not hold.
    `early_shrinks`: its instance counts rest on the servers that serve, never on those that are launched.
    `lets_rest`: in large fleets it proposes steady pipelines in turn.
    `waits_for_batches`: a central queue of the simulator holds requests until a batch is full.
    `fixed_instances`: the instances a stage that its plans keep, None where plans choose them. `fixed_servers`: plans keep all servers.
    `prepared`: its parameters once an evaluation knows the load. `first_servers`: the fleet that an evaluation starts it with, None
    where that is the default: as the options say, or servers for the trace's beginning where stages are separate.
    """

    name: PolicyName
    propose: Callable[[PipelineState, PipelineView], PolicyResult]
    needs_arrivals_per_second: bool = False
    work_window_s: float = WORK_WINDOW_S
    waits_for_batches: bool = True
    holds_to_predictions: bool = False
    lets_rest: bool = False
    early_shrinks: bool = False
    fixed_instances: Callable[[PolicyConfig, ChainProblem], tuple[int, ...] | None] = _free
    fixed_servers: bool = False
    prepared: Callable[[PolicyConfig, Load], PolicyConfig] = _unchanged
    first_servers: Callable[[ThemisConfig, Load], tuple[Models, ...] | None] | None = None
