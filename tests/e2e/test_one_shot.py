"""A growth under a standing backlog: simulator and real Triton side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.one_shot import CASES, Case, Result, run_cases, simulate_case, write_repository
from tests.e2e.triton_process import running_triton

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

TOLERANCE = 0.15


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    folder = tmp_path_factory.mktemp("one-shot")
    repository = write_repository(folder / "models")
    arguments = ("--disable-auto-complete-config", f"--model-load-thread-count={len(CASES) + 1}")
    with running_triton(folder, [case.name for case in CASES], repository=repository, exit_timeout_s=5, arguments=arguments) as server:
        yield asyncio.run(run_cases(server.grpc_address, repository))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_simulator_grows_under_a_backlog_as_triton_does(case: Case, measured: dict[str, Result]) -> None:
    real, simulated = measured[case.name], simulate_case(case)
    assert real.failed == simulated.failed == 0
    assert real.longest_s == pytest.approx(simulated.longest_s, rel=TOLERANCE)
    served = min(len(real.first_answer_s), len(simulated.first_answer_s))
    assert served >= (4 if case.counts == (4,) else 2)
    assert real.first_answer_s[1:served] == pytest.approx(simulated.first_answer_s[1:served], rel=TOLERANCE)
    assert real.returned_s == pytest.approx(simulated.returned_s, rel=TOLERANCE)
