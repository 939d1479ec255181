"""Capacity and required capacity have one formula, in Python and in the kernels."""

from __future__ import annotations

import numpy as np
import pytest

from tests.property.solver_problems import random_problem
from themis_triton.solver.pack import pack
from themis_triton.solver.stage_kernels import required_rps, server_capacity_rps


@pytest.mark.parametrize("seed", range(40))
def test_python_and_kernels_agree(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    chain = pack(problem)
    stages = len(problem.stages)
    elsewhere = int(chain.rule[3])
    for s, stage in enumerate(problem.stages):
        assert required_rps(chain, s) == pytest.approx(problem.required_stage_rps(s), rel=1e-12, abs=1e-12)
        columns = stage.max_instances
        means = chain.latency[stages + s, : stage.max_batch, elsewhere : elsewhere + columns]
        table = problem.server_capacity_rps(means)
        for batch in range(1, stage.max_batch + 1):
            for instances in range(1, columns + 1):
                compiled = server_capacity_rps(chain, s, instances, batch, instances + elsewhere)
                assert compiled == pytest.approx(table[batch - 1, instances - 1], rel=1e-12)
