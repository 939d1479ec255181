"""`themis plan` from what the sidecar runs, against what the sidecar then does on a real Triton: step by step, in the same order."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Launch
from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, Sidecar, Status, beside, instances, launched, traffic
from themis_triton.adapters.store.records import unpacked
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e

SURGE_RPS = 60.0
"""More than one instance of each model carries: what waits makes the demand more than all that there can be."""
MAX_INSTANCES = {DETECTOR: 3, CLASSIFIER: 2}


def bounded_models() -> dict[str, Any]:
    models = yaml.safe_load((shipped("config") / "themis.yaml").read_text())["models"]
    return {name: models[name] | {"instances": [1, bound]} for name, bound in MAX_INSTANCES.items()}


def predicted(sidecar: Sidecar, rate_rps: float) -> list[str]:
    """The steps of the migration; a server that is to be launched has no name yet."""
    done = sidecar.command("plan", "--from", "live", "--rate", f"{rate_rps:g}", "--json")
    assert done.returncode in (0, 1), done.stderr
    (plan,) = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if plan["feasible"] else 1)
    steps = plan["path"]["steps"]
    return [words(step["kind"], step["server"], step["model"], step["instances"], step["batch"]) for step in steps]


def executed(sidecar: Sidecar, since_s: float) -> list[str]:
    """The actions that were started, in their order."""
    rows = sidecar.journal("select record from ticks where changed order by at_s")
    # A pause and its end are changes without a snapshot.
    ticks = [record for record in (json.loads(unpacked(row[0])) for row in rows) if "snapshot" in record]
    records = [record for record in ticks if record["snapshot"]["at_s"] > since_s and not record["advisory"]]
    skipped = {o["action"]["id"] for record in records for o in record["outcomes"] if o["kind"] == "skipped"}
    return [
        words(a["kind"], a["server"], a["model"], *([a[when][key] for when in ("before", "after")] for key in ("instances", "max_batch")))
        if a["model"] is not None
        else words(a["kind"], a["server"], None, [0, sum(state["instances"] for state in a["models"].values())], [])
        for record in records
        for a in record["plan"]["actions"]
        if a["id"] not in skipped
    ]


def words(kind: str, server: str, model: str | None, instances: list[int], batch: list[int]) -> str:
    if kind == "launch":
        return f"launch with {instances[1]} instances"
    return f"{kind} {model} on {server} {instances}, batch {batch}" if model is not None else f"{kind} {server}"


def grown(status: Status) -> bool:
    new = launched(status, "serving")
    return bool(new) and all(
        instances(status, m, name) == bound for m, bound in MAX_INSTANCES.items() for name in (ADOPTED, new[0]["name"])
    )


def test_the_sidecar_executes_the_steps_that_plan_predicted_in_their_order(launch: Launch, tmp_path: Path) -> None:
    policy = {"scale_up": {"max_added_instances": 64}, "scale_down": {"shrink_stabilization_s": 6, "scale_in_stabilization_s": 6}}
    with beside(launch, tmp_path, models=bounded_models(), policy=policy) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            assert (await asyncio.to_thread(sidecar.command, "pause")).returncode == 0
            async with traffic(sidecar, SURGE_RPS) as load:
                status = await sidecar.until("a demand beyond all capacity", lambda s: demand_rps(s) > 200.0)
                growth = await asyncio.to_thread(predicted, sidecar, demand_rps(status))
                began_s = status["at_s"]
                assert (await asyncio.to_thread(sidecar.command, "resume")).returncode == 0
                await sidecar.until("the plan's growth", grown)
                assert (await asyncio.to_thread(sidecar.command, "pause")).returncode == 0
                assert await asyncio.to_thread(executed, sidecar, began_s) == growth
                assert [step.split(" ")[0] for step in growth] == ["grow", "grow", "launch"]
                await load.end()
            status = await sidecar.until("a need of one server of one instance each", is_calm)
            settling = await asyncio.to_thread(predicted, sidecar, 1.0)
            began_s = status["at_s"]
            assert (await asyncio.to_thread(sidecar.command, "resume")).returncode == 0
            await sidecar.until(
                "the plan's end", lambda s: len(s["servers"]) == 1 and instances(s, DETECTOR) == instances(s, CLASSIFIER) == 1
            )
            assert await asyncio.to_thread(executed, sidecar, began_s) == settling
            assert [step.split(" ")[0] for step in settling] == ["retire", "shrink", "shrink", "shrink"]

        asyncio.run(scenario())


def demand_rps(status: Status) -> float:
    evidence = (status.get("pipelines") or [{}])[0].get("evidence")
    return float(evidence["demand_fast_rps"]) if evidence else 0.0


def is_calm(status: Status) -> bool:
    """Every window has passed without requests: the advice is to retire and to shrink in one tick."""
    return "would retire" in status["sentence"] and "shrink" in status["sentence"]
