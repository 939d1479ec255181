"""How the stages of a graph join, for the kernels: a binary tree, whose inner nodes add or take the larger of two latencies.

Node s is stage s; node S + k is join k, whose parts stand in row k of `Chain.ints`. Parts come before their joins; the last node is
the whole graph. A chain is the joins (0, 1), (S, 2), (S + 1, 3) and so on, all in series.
"""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.surface import FloatArray, IntArray

JOIN_LEFT, JOIN_RIGHT, JOIN_PARALLEL = 4, 5, 6  # columns of `Chain.ints`; its last row has no join


@flat_kernel
def joined_ms(left_ms: float, right_ms: float, parallel: int) -> float:
    """The latency of two parts that run one after the other, or side by side."""
    return max(left_ms, right_ms) if parallel else left_ms + right_ms


@flat_kernel
def graph_ms(ints: IntArray, nodes_ms: FloatArray) -> float:
    """The latency of the whole graph from those of its stages, `nodes_ms[:S]`; writes those of the joins behind them."""
    stages = ints.shape[0]
    for k in range(stages - 1):
        left, right = ints[k, JOIN_LEFT], ints[k, JOIN_RIGHT]
        nodes_ms[stages + k] = joined_ms(nodes_ms[left], nodes_ms[right], ints[k, JOIN_PARALLEL])
    ms: float = nodes_ms[2 * stages - 2]
    return ms


@kernel
def node_weights(ints: IntArray) -> FloatArray:
    """A weight of each node, so that Σ weight·latency of the stages is at most the latency of the graph, whatever the latencies.

    The parts of a series have its weight, branches share that of their join equally; in a chain all weights are 1.
    """
    stages = ints.shape[0]
    weights = np.ones(2 * stages - 1)
    for k in range(stages - 2, -1, -1):
        share = 0.5 if ints[k, JOIN_PARALLEL] else 1.0
        weights[ints[k, JOIN_LEFT]] = weights[ints[k, JOIN_RIGHT]] = weights[stages + k] * share
    return weights
