"""The settings and the fleet that a simulated policy starts with."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyName
from themis_triton.decide.policy import Load
from themis_triton.evaluation.starts import start_for
from themis_triton.policies import policy_named
from themis_triton.sim.setup import SimOptions, simulated


def prepared(config: ThemisConfig, policy: PolicyName, load: Load) -> ThemisConfig:
    """The settings of a policy, with the rate that it plans for where it plans once and the settings name none."""
    own = config.under(policy)
    return replace(own, policy=policy_named(policy).prepared(own.policy, load))


def start_of(config: ThemisConfig, policy: PolicyName, load: Load, options: SimOptions, *, waits: bool) -> tuple[Models, ...] | None:
    """First servers for `SimOptions.servers`; None: the options' own. `config` is the policy's, as `prepared` returns it.

    By default servers for the trace's beginning where stages are separate, with batches of one if the world `waits` for full batches.
    """
    built, first_servers = simulated(config, options), policy_named(policy).first_servers
    if first_servers is not None:
        return first_servers(built, load)
    if config.planning.placement is not Placement.SEPARATE:
        return None
    return start_for(built, load.first_rps, batch=1 if waits else None)
