"""The policies by name. The evaluation's baselines are imported on first use."""

from __future__ import annotations

from themis_triton.core.policy import PolicyName
from themis_triton.decide.policy import Policy
from themis_triton.decide.themis import THEMIS


def policy_named(name: PolicyName) -> Policy:
    """The policy's record."""
    if name is THEMIS.name:
        return THEMIS
    from themis_triton.evaluation.baselines import BASELINES  # noqa: PLC0415 - a daemon with the default policy needs none of them

    return BASELINES[name]
