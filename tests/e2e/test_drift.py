"""A model that becomes slower while it serves: noticed, named, counted with, and forgotten once it is over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Launch
from tests.e2e.daemon_setup import CLASSIFIER, DETECTOR, Sidecar, beside, instances, traffic
from tests.e2e.rounds import measured_again_if_disturbed
from themis_triton.emulation.controls import SCALE_VARIABLE

pytestmark = [pytest.mark.e2e, pytest.mark.timed]

RATE_RPS = 30.0
"""Two instances of the detector carry it on one server, and not when they are slower."""
FACTOR = 1.4
SAYS = f"{DETECTOR} takes 1."


def put(path: Path, factors: dict[str, float]) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(factors))
    aside.replace(path)


@measured_again_if_disturbed
def test_slower_batches_are_noticed_named_and_planned_for_until_they_are_fast_again(
    launch: Launch, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("drift")
    scale = folder / "scale.json"
    monkeypatch.setenv(SCALE_VARIABLE, str(scale))
    with beside(launch, folder, slots=(), policy={"drift": {"stabilization_s": 3}}) as sidecar:
        asyncio.run(scenario(sidecar, scale))
        message = [sentence for (sentence,) in sidecar.journal("select sentence from ticks where changed order by at_s")]
        assert any(SAYS in sentence for sentence in message)
        assert "drift began: video-detector takes 1." in sidecar.log.read_text()


async def scenario(sidecar: Sidecar, scale: Path) -> None:
    await sidecar.start()
    async with traffic(sidecar, RATE_RPS) as load:
        await sidecar.until("a ratio of both models", lambda s: all(m["drift_ratio"] for m in s["models"].values()))
        await load.more(round(6 * RATE_RPS))
        calm = await sidecar.until("calm", lambda s: s["reason"] == "steady")
        assert calm["drift"] == []
        assert [event for event in calm["events"] if "drift" in event["kinds"]] == []
        before = instances(calm, DETECTOR)
        await asyncio.to_thread(put, scale, {DETECTOR: FACTOR})
        noticed = await sidecar.until("drift", lambda s: s["models"][DETECTOR]["drifting"])
        assert not noticed["models"][CLASSIFIER]["drifting"]
        await sidecar.until("correction", lambda s: s["models"][DETECTOR]["correction"] >= FACTOR - 0.1)
        grown = await sidecar.until("a larger plan", lambda s: instances(s, DETECTOR) > before)
        assert SAYS in grown["sentence"]
        await asyncio.to_thread(shown, sidecar)
        await asyncio.to_thread(put, scale, {})
        await sidecar.until("the end of drift", lambda s: not s["models"][DETECTOR]["drifting"])
        back = await sidecar.until("the profile's own plan", lambda s: s["models"][DETECTOR]["correction"] == 1.0)
        assert back["drift"] == []
        await sidecar.until("fewer instances", lambda s: instances(s, DETECTOR) <= before)
        summary = await load.end()
    assert (summary.failed, summary.errors) == (0, {})


def shown(sidecar: Sidecar) -> None:
    """Command line and metrics name the model."""
    reported: dict[str, Any] = json.loads(sidecar.command("status", "--json").stdout.splitlines()[-1])
    assert reported["models"][DETECTOR]["correction"] > 1.0
    assert [words for words in reported["drift"] if words.startswith(SAYS)] == reported["drift"]
    assert f"drift: {SAYS}" in sidecar.command("status").stdout
    metrics = httpx.get(f"http://{sidecar.status_address}/metrics", trust_env=False).text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values[f'themis_drift_ratio{{model="{DETECTOR}"}}']) > 1.15
    assert float(values[f'themis_latency_correction{{model="{DETECTOR}"}}']) > 1.15
    assert float(values[f'themis_latency_correction{{model="{CLASSIFIER}"}}']) == 1.0
