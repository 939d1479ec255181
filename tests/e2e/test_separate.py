"""`planning.placement: separate` on a real Triton and Envoy: servers of one stage each, and every stage scaled by itself."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.e2e.conftest import REPOSITORY
from tests.e2e.daemon_setup import QUICK, Sidecar, Status, launched, traffic
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.records import unpacked
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.run import simulate

pytestmark = pytest.mark.e2e

STAGES = IDENTIFICATION, TRANSLATION, ANALYSIS = ("nlp-language-identification", "nlp-translation", "nlp-sentiment-analysis")
SIMULATED_S = 45.0
CALM_RPS, MORE_RPS = 5.0, 45.0
"""One instance of each stage carries the first; with the other, two servers of translation are needed at two instances each."""


def settings(directory: Path) -> dict[str, Any]:
    """The nlp pipeline of the shipped settings, on five slots and without a running server."""
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    models = {name: sample["models"][name] for name in STAGES}
    models[TRANSLATION] |= {"instances": [1, 2]}
    return {
        "state_directory": str(directory / "state"),
        "launch": {
            "slots": [f"cpu:{number}" for number in range(5)],
            "model_repository": str(REPOSITORY),
            "stop_timeout_s": 3,
            "drain_timeout_s": 10,
        },
        "models": models,
        "pipelines": {"nlp": sample["pipelines"]["nlp"]},
        "planning": {"placement": "separate"},
        "policy": QUICK,
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
    }


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    written = settings(tmp_path)
    path = tmp_path / "themis.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    daemon = Sidecar(path, tmp_path / "state", None, written["envoy"]["grpc_listen"], written["status"]["address"], tmp_path / "daemon.log")
    try:
        yield daemon
    finally:
        daemon.end()


def servers(status: Status, *phases: str) -> dict[str, int]:
    """The servers of each stage; each holds just one."""
    held = [tuple(server["models"]) for server in launched(status, *phases)]
    assert all(len(models) == 1 for models in held), held
    return dict(Counter(models[0] for models in held))


def planned(sidecar: Sidecar) -> list[tuple[int, ...]]:
    """The servers of each stage that the decisions asked for, one after the other."""
    rows = sidecar.journal("select record from ticks where changed order by at_s")
    # A restart and its like are changes without a decision.
    decisions = [json.loads(unpacked(row[0])).get("decision") for row in rows]
    return [tuple(e["stage_servers_desired"]) for decision in decisions if decision is not None for e in decision["evidence"]]


def simulated(sidecar: Sidecar) -> list[tuple[int, ...]]:
    """The same, where the same engine runs the same settings and rates in virtual time."""
    rng = np.random.default_rng(0)
    calm, more = np.cumsum(rng.exponential(1.0 / CALM_RPS, 400)), 3.0 + np.cumsum(rng.exponential(1.0 / MORE_RPS, 1000))
    arrivals = np.sort(np.concatenate([calm[calm < SIMULATED_S], more[more < SIMULATED_S / 3.0]]))
    run = simulate(load_settings(sidecar.settings), {"nlp": arrivals}, SIMULATED_S)
    assert run.failed == 0
    return [evidence.stage_servers_desired for tick in run.ticks for evidence in tick.decision.evidence]


def largest(plans: list[tuple[int, ...]]) -> dict[str, int]:
    return dict(zip(STAGES, map(max, zip(*plans, strict=True)), strict=True))


def test_three_stages_are_scaled_by_themselves_as_simulated_and_no_request_fails(sidecar: Sidecar) -> None:
    async def scenario() -> None:
        await sidecar.start()
        await sidecar.until("a server for each stage", lambda s: servers(s, "serving") == dict.fromkeys(STAGES, 1))
        async with traffic(sidecar, CALM_RPS, STAGES) as calm:
            await calm.more(1)
            async with traffic(sidecar, MORE_RPS, STAGES) as more:
                status = await sidecar.until("a second server for translation", lambda s: servers(s, "serving").get(TRANSLATION, 0) > 1)
                grown = servers(status)
                assert grown[TRANSLATION] > max(grown[IDENTIFICATION], grown[ANALYSIS])
                await sidecar.kill()
                again = await sidecar.start()
                assert {s["name"] for s in launched(status, "serving")} <= {s["name"] for s in launched(again, "serving")}
                await more.more(50)
                summaries = [await more.end()]
            await sidecar.until("one server for each stage again", lambda s: servers(s) == dict.fromkeys(STAGES, 1))
            summaries.append(await calm.end())
        assert [(summary.failed, summary.errors) for summary in summaries] == [(0, {})] * 2

    asyncio.run(scenario())
    live, virtual = planned(sidecar), simulated(sidecar)
    assert live[-1] == virtual[-1] == (1, 1, 1)
    for most in (largest(live), largest(virtual)):
        assert most[TRANSLATION] > max(most[IDENTIFICATION], most[ANALYSIS])
    assert all(abs(largest(live)[stage] - largest(virtual)[stage]) <= 1 for stage in STAGES)
