"""A model that becomes slower while it serves: noticed, named, counted with, and forgotten once it is over."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Launch
from tests.e2e.daemon_setup import CLASSIFIER, DETECTOR, Sidecar, Status, beside, instances, traffic
from themis_triton.emulation.controls import SCALE_VARIABLE

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]
log = logging.getLogger(__name__)

RATE_RPS = 30.0
"""Two instances of the detector carry it on one server, and not when they are slower."""
FACTOR = 1.4
NOTICED_WITHIN_S = 10.0
SAYS = f"{DETECTOR} takes 1."


def put(path: Path, factors: dict[str, float]) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(factors))
    aside.replace(path)


async def timed(sidecar: Sidecar, what: str, holds: Callable[[Status], bool]) -> tuple[float, Status]:
    """Seconds until the status says so, and the status."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    status = await sidecar.until(what, holds)
    return loop.time() - started_s, status


def test_slower_batches_are_noticed_named_and_planned_for_until_they_are_fast_again(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = tmp_path / "scale.json"
    monkeypatch.setenv(SCALE_VARIABLE, str(scale))
    with beside(launch, tmp_path, slots=(), policy={"drift": {"stabilization_s": 4}}) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, RATE_RPS) as load:
                await sidecar.until("a ratio of both models", lambda s: all(m["drift_ratio"] for m in s["models"].values()))
                await load.more(round(10 * RATE_RPS))
                calm = await sidecar.until("calm", lambda s: s["reason"] == "steady")
                assert calm["drift"] == []
                assert [event for event in calm["events"] if "drift" in event["kinds"]] == []
                before = instances(calm, DETECTOR)
                await asyncio.to_thread(put, scale, {DETECTOR: FACTOR})
                noticed_s, noticed = await timed(sidecar, "drift", lambda s: s["models"][DETECTOR]["drifting"])
                assert noticed_s <= NOTICED_WITHIN_S
                assert not noticed["models"][CLASSIFIER]["drifting"]
                await sidecar.until("correction", lambda s: s["models"][DETECTOR]["correction"] >= FACTOR - 0.1)
                grown_s, grown = await timed(sidecar, "a larger plan", lambda s: instances(s, DETECTOR) > before)
                assert SAYS in grown["sentence"]
                await asyncio.to_thread(shown, sidecar)
                await asyncio.to_thread(put, scale, {})
                ended_s, _ = await timed(sidecar, "the end of drift", lambda s: not s["models"][DETECTOR]["drifting"])
                back_s, back = await timed(sidecar, "the profile's own plan", lambda s: s["models"][DETECTOR]["correction"] == 1.0)
                assert back["drift"] == []
                await sidecar.until("fewer instances", lambda s: instances(s, DETECTOR) <= before)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            log.info("drift: noticed after %.1f s, grown %.1f s after its correction", noticed_s, grown_s)
            log.info("drift: ended after %.1f s, plans back %.1f s later", ended_s, back_s)

        asyncio.run(scenario())
        message = [sentence for (sentence,) in sidecar.journal("select sentence from ticks where changed order by at_s")]
        assert any(SAYS in sentence for sentence in message)
        assert "drift began: video-detector takes 1." in sidecar.log.read_text()


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
