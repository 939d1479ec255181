"""The reading calls of the status API: history, decisions, plans and their description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.unit.samples import NOW_S, action, config
from tests.unit.status_api import ServedApi, fill, served, tick
from themis_triton.adapters.store import bounds
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.adapters.store.writer import PRUNE_EVERY
from themis_triton.core.action import ActionKind, Outcome, OutcomeKind
from themis_triton.core.decision import Clamp, ClampKind
from themis_triton.core.encoding import plain
from themis_triton.core.history import PipelineSample
from themis_triton.core.record import TickRecord, describe
from themis_triton.daemon.openapi import openapi_text
from themis_triton.planning import WhatIf, plan_rates

DAY_S = 86_400.0
AHEAD = PipelineSample("ahead", NOW_S + 30 * DAY_S, 5, 5.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 5.0, 0.0, 100.0, 200.0)
"""Written while the clock was wrong."""
DOCUMENT: dict[str, Any] = json.loads(openapi_text())
GROWN = action(ActionKind.GROW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def asked(path: Path, scenario: Callable[[ServedApi], Awaitable[None]], *, can_plan: bool = True) -> None:
    async def run() -> None:
        async with served(path, can_plan=can_plan) as api:
            await scenario(api)

    asyncio.run(run())


def answered(response: httpx.Response, path: str, status: int = 200) -> Any:
    """The JSON of an answer, which the API's own description allows."""
    assert response.status_code == status, response.text
    schema = DOCUMENT["paths"][path]["get"]["responses"][str(status)]["content"]["application/json"]["schema"]
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(response.json())
    return response.json()


def grown(at_s: float) -> TickRecord:
    """A decision that grows a model, and was limited."""
    taken = tick(at_s, decision_id="d")
    decision = replace(taken.decision, clamps=(Clamp(ClampKind.PACE, "one at a time"),))
    return replace(taken, decision=decision, plan=replace(taken.plan, actions=(GROWN,)))


def test_history_has_a_bounded_number_of_steps_with_true_means_and_maxima(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        fill(api.journal, 1200, lambda s: 80.0 if 600 <= s < 660 else 20.0, lambda s: 400.0 if 600 <= s < 660 else 200.0)
        history = answered(await api.client.get("history", params={"range_s": 1200, "points": 20}), "/v1/history")
        (video,) = history["pipelines"]
        assert history["step_s"] == 60.0
        assert 20 <= len(video["at_s"]) <= 21
        assert (max(video["peak_rps"]), max(video["p99_ms"]), video["p50_ms"][2]) == (80.0, 400.0, 100.0)
        assert max(video["rate_rps"]) <= 80.0
        assert sum(video["late_by_step_s"]) == video["late_s"] == 60.0
        assert video["traffic_s"] == pytest.approx(1195.0, abs=5.0)
        assert set(video["instances"]) == {5.0}
        (whole,) = (await api.client.get("history", params={"range_s": 1200, "points": 1})).json()["pipelines"]
        assert (whole["late_s"], len(whole["at_s"])) == (60.0, 2)

    asked(path, scenario)


def test_seconds_without_traffic_count_neither_as_late_nor_as_inside(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        fill(api.journal, 100, lambda _: 0.0, lambda _: None)
        (video,) = (await api.client.get("history")).json()["pipelines"]
        assert (video["traffic_s"], video["late_s"], set(video["p99_ms"]), set(video["p50_ms"])) == (0.0, 0.0, {None}, {None})

    asked(path, scenario)


def test_old_samples_are_joined_without_losing_a_late_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ROLL_UPS", ((300, 60), (900, 600)))
    with closing(Journal(path)) as journal:
        journal.record_samples([AHEAD])
        fill(journal, 3000, lambda s: float(s % 7), lambda s: 400.0 if s % 100 == 0 else 200.0)
        for second in range(PRUNE_EVERY):
            journal.record_event(NOW_S, f"event-{second}", "nothing")
        assert journal.flush()
    with reading(path) as journal_again:
        assert journal_again.rows("select pipeline from samples where at_s > ?", (NOW_S + DAY_S,)) == [("ahead",)]
        widths = journal_again.rows("select width_s, count(*), sum(seconds) from samples where pipeline != 'ahead' group by 1 order by 1")
        late, seconds, rate, p99 = journal_again.rows(
            "select sum(late_s), sum(seconds), sum(rate_rps * seconds), max(p99_ms) from samples where pipeline != 'ahead'"
        )[0]
    assert [width for width, *_ in widths] == [5, 60, 600]
    assert sum(count for _, count, _ in widths) < 100
    assert (late, p99) == (29.0, 400.0)
    assert rate == pytest.approx(3.0 * seconds, rel=0.01)


def test_a_decision_has_its_evidence_its_steps_and_what_came_of_it(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        api.journal.record_tick(grown(NOW_S - 60))
        api.journal.record_outcome(Outcome(GROWN, OutcomeKind.DONE, NOW_S - 60, NOW_S - 57.5))
        fill(api.journal, 120, lambda _: 40.0, lambda s: 450.0 if s < 70 else 180.0)
        detail = answered(await api.client.get("decisions/d"), "/v1/decisions/{id}")
        assert detail["evidence"][0]["runner_up"] == "3 servers cost more"
        assert [clamp["sentence"] for clamp in detail["clamps"]] == ["one at a time"]
        (step,) = detail["steps"]
        assert (step["sentence"], step["outcome"], step["duration_s"]) == (describe(GROWN), "done", 2.5)
        (result,) = detail["results"]
        assert (result["predicted_p99_ms"], result["measured_p99_ms"], result["servers_desired"]) == (150.0, 450.0, 2)
        assert result["held_after_s"] == pytest.approx(10.0, abs=5.0)
        history = answered(await api.client.get("history"), "/v1/history")
        assert [(each["id"], each["reason"]) for each in history["decisions"]] == [("d", "steady")]
        assert [(each["outcome"], each["duration_s"]) for each in history["actions"]] == [("done", 2.5)]
        assert history["omitted"] == 0

    asked(path, scenario)


def test_a_long_sentence_is_cut_in_the_list_and_whole_in_its_decision(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        api.journal.record_event(NOW_S, "reloaded", "x" * 5_000)
        assert api.journal.flush()
        (listed,) = answered(await api.client.get("history"), "/v1/history")["decisions"]
        assert listed["sentence"] == "x" * 599 + "…"
        assert len(answered(await api.client.get(f"decisions/{listed['id']}"), "/v1/decisions/{id}")["sentence"]) == 5_000

    asked(path, scenario)


def test_a_change_of_the_sidecar_itself_is_a_decision_without_evidence(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        api.journal.record_event(NOW_S, "paused", "paused by `themis pause`")
        assert api.journal.flush()
        detail = answered(await api.client.get(f"decisions/paused-{NOW_S:.0f}"), "/v1/decisions/{id}")
        assert (detail["reason"], detail["sentence"], detail["evidence"]) == ("paused", "paused by `themis pause`", [])
        missing = answered(await api.client.get("decisions/no-such"), "/v1/decisions/{id}", 404)
        assert "no decision 'no-such'" in missing["error"]

    asked(path, scenario)


def test_equal_proposals_in_a_row_are_one_change(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        for second in range(5):
            api.journal.record_tick(replace(grown(NOW_S - 50 + second), advisory=True))
        api.journal.record_event(NOW_S - 20, "paused", "paused")
        api.journal.record_tick(replace(grown(NOW_S - 10), advisory=True))
        assert api.journal.flush()
        history = (await api.client.get("history")).json()
        assert [each["at_s"] - NOW_S for each in history["decisions"]] == [-10.0, -20.0, -50.0]

    asked(path, scenario)


def test_a_plan_is_that_of_the_solver_at_the_rate_and_slo_asked_for(path: Path) -> None:
    expected = plan_rates(config(), (10.0, 60.0), WhatIf("video", slo_ms=250.0))

    async def scenario(api: ServedApi) -> None:
        parameters: dict[str, Any] = {"pipeline": "video", "rate_rps": [10, 60], "slo_ms": 250}
        answer = answered(await api.client.get("plan", params=parameters), "/v1/plan")
        assert (answer["pipeline"], answer["slo_ms"], answer["plans"]) == ("video", 250.0, plain(expected))
        assert answer["plans"][0]["cost"] < answer["plans"][1]["cost"]

    asked(path, scenario)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("plan", "rate_rps: 0 values are invalid"),
        ("plan?rate_rps=fast", "rate_rps: 'fast' is invalid: expected a number of 0 to 1e+06"),
        ("plan?rate_rps=nan", "rate_rps: 'nan' is invalid"),
        ("plan?rate_rps=1&slo_ms=-1", "slo_ms: '-1' is invalid"),
        ("plan?rate_rps=1&pipeline=x", "x is invalid: expected a pipeline of the settings: video"),
        ("history?points=0", "points: '0' is invalid"),
        ("history?range_s=1e9", "range_s: '1e9' is invalid"),
        ("history?pipeline=x", "pipeline: 'x' is invalid: expected video"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(path: Path, call: str, words: str) -> None:
    async def scenario(api: ServedApi) -> None:
        error = answered(await api.client.get(call), f"/v1/{call.partition('?')[0]}", 400)
        assert words in error["error"]

    asked(path, scenario)


def test_nothing_is_planned_while_the_solvers_are_being_compiled(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        response = await api.client.get("plan", params={"rate_rps": 1})
        assert "being compiled" in answered(response, "/v1/plan", 503)["error"]

    asked(path, scenario, can_plan=False)


def test_without_a_readable_journal_the_history_says_so(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        api.journal.close()
        await asyncio.to_thread(path.unlink)
        response = await api.client.get("history")
        assert "expected the journal of a sidecar that has run" in answered(response, "/v1/history", 503)["error"]

    asked(path, scenario)


def test_the_description_is_served_and_every_schema_in_it_is_one(path: Path) -> None:
    async def scenario(api: ServedApi) -> None:
        assert (await api.client.get("openapi.json")).json() == DOCUMENT

    asked(path, scenario)
    schemas = DOCUMENT["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    references = {part.split('"')[0] for part in openapi_text().split('"#/components/schemas/')[1:]}
    assert references == schemas.keys()
    assert all(operation["summary"] for calls in DOCUMENT["paths"].values() for operation in calls.values())
