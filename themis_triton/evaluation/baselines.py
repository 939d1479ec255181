"""All baselines by name."""

from __future__ import annotations

from themis_triton.core.policy import PolicyName
from themis_triton.decide.policy import Policy
from themis_triton.evaluation.concurrency import CONCURRENCY
from themis_triton.evaluation.horizontal import HORIZONTAL
from themis_triton.evaluation.inferline import INFERLINE
from themis_triton.evaluation.oracle import ORACLE
from themis_triton.evaluation.queue_time import QUEUE_TIME
from themis_triton.evaluation.static import STATIC
from themis_triton.evaluation.themis_paper import THEMIS_PAPER
from themis_triton.evaluation.vertical import VERTICAL
from themis_triton.evaluation.vertical_themis import VERTICAL_THEMIS

_ALL = (THEMIS_PAPER, HORIZONTAL, VERTICAL, INFERLINE, STATIC, QUEUE_TIME, CONCURRENCY, VERTICAL_THEMIS, ORACLE)
BASELINES: dict[PolicyName, Policy] = {policy.name: policy for policy in _ALL}
