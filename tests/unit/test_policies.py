"""The policies' records: one for each name, and the default policy alone in the daemon."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.samples import config
from themis_triton.commands.simulated_runs import CLAIRVOYANT, WorldFlags, simulated_run
from themis_triton.core.policy import PolicyName
from themis_triton.decide.rules import build_rules
from themis_triton.load.traces import TraceOptions
from themis_triton.policies import policy_named
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

PAPER = {
    "themis": (2983, 8, 11295.9),
    "themis-paper": (2983, 88, 12434.0),
    "horizontal": (2983, 1228, 10773.0),
    "vertical": (2983, 83, 11700.0),
    "inferline": (2983, 994, 17648.5),
    "static": (2983, 16, 15660.0),
    "queue-time": (2983, 2617, 6012.0),
    "concurrency": (2983, 1115, 81501.0),
    "vertical-themis": (2983, 5, 10355.4),
    "oracle": (2983, 1, 10745.75),
    "clairvoyant": (2983, 0, 7931.0),
}
"""By policy: requests, late requests and cost of 90 s of a flash crowd in the paper's world."""


@pytest.mark.parametrize("name", list(PolicyName))
def test_each_name_has_the_record_of_that_name(name: PolicyName) -> None:
    assert policy_named(name).name is name


def test_only_policies_that_need_arrivals_per_second_have_them_kept() -> None:
    assert {name for name in PolicyName if policy_named(name).needs_arrivals_per_second} == {PolicyName.THEMIS_PAPER}


def test_plans_of_a_policy_keep_what_it_keeps() -> None:
    problem = build_rules(config()).problems["video"]
    assert policy_named(PolicyName.THEMIS).fixed_instances(config().policy, problem) is None
    assert policy_named(PolicyName.HORIZONTAL).fixed_instances(config().policy, problem) is not None
    assert [name for name in PolicyName if policy_named(name).fixed_servers] == [PolicyName.VERTICAL, PolicyName.VERTICAL_THEMIS]


def test_the_daemon_with_the_default_policy_imports_no_baseline() -> None:
    program = (
        "import sys; import themis_triton.daemon.service, themis_triton.tick; from themis_triton.policies import policy_named; "
        "from themis_triton.core.policy import PolicyName; policy_named(PolicyName.THEMIS); "
        "before = [name for name in sys.modules if name.startswith('themis_triton.evaluation')]; policy_named(PolicyName.STATIC); "
        "print(before, 'themis_triton.evaluation.baselines' in sys.modules)"
    )
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


@pytest.mark.parametrize("policy", [*(name.value for name in PolicyName), CLAIRVOYANT])
def test_the_papers_world_gives_the_recorded_results(policy: str) -> None:
    settings = load_settings(shipped("config") / "paper-video.yaml")
    result = simulated_run(settings, TraceOptions("flash", scale=0.5, duration_s=90), WorldFlags(), None, (policy, 0))
    assert (result.requests, result.violated, round(result.cost, 6)) == PAPER[policy]
