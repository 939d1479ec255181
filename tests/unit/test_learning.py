"""Service times of models without a profile: learnt from counters, told when they suffice, and used from then on."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, NOW_S, config, record, route, server, snapshot
from themis_triton.commands.plan_command import PlanFlags, plan_command
from themis_triton.commands.settings_commands import validate_command
from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.decision import ClampKind, Target
from themis_triton.core.estimate import LearntTimes, PipelineKnowledge
from themis_triton.core.fleet import ModelState, Phase
from themis_triton.core.observation import BatchCounters, ModelCounters, ServerReading
from themis_triton.core.record import knowledge_words
from themis_triton.core.service_times import GUESS_MS, fitted, slowdown
from themis_triton.core.service_times import learnt as learnt_of
from themis_triton.daemon.learning import Learning, with_learnt_times
from themis_triton.decide.guards import guard
from themis_triton.estimate.estimate import History, estimate
from themis_triton.estimate.learning import LearningHistory, observe_batches
from themis_triton.planning import WhatIf
from themis_triton.settings import load_settings, problems

FEW = (BatchCounters(1, 99, 1.0),)
BATCHES = (BatchCounters(1, 300, 300 * 12_000.0), BatchCounters(4, 100, 100 * 30_000.0))


def learning(settings: ThemisConfig | None = None) -> ThemisConfig:
    """Settings whose classifier has no profile."""
    settings = settings or config()
    classifier = settings.models[CLASSIFIER]
    guess = replace(classifier, profile=replace(classifier.profile, learnt_from=0.0))
    return replace(settings, models=settings.models | {CLASSIFIER: guess})


def seen(at_s: float, *counts: float, name: str = "a", size: int = 1, ms: float = 20.0) -> ServerReading:
    """A reading in which each count is that of the executed batches so far of one size, from `size` on."""
    batches = tuple(BatchCounters(size + index, count, count * ms * 1000.0) for index, count in enumerate(counts))
    ended = sum(batch.size * batch.executions for batch in batches)
    counters = ModelCounters(success=ended, inferences=ended, executions=sum(counts), batches=batches)
    return ServerReading(name, NOW_S + at_s, {CLASSIFIER: counters})


def known(*readings: ServerReading, settings: ThemisConfig | None = None) -> PipelineKnowledge:
    """What is known of the video pipeline after these readings."""
    history, servers = History(), [server(name) for name in sorted({reading.server for reading in readings})]
    for reading in readings:
        seconds = reading.at_s - NOW_S
        routes = (route(DETECTOR, reading.at_s, 10.0 * seconds), route(CLASSIFIER, reading.at_s, 10.0 * seconds))
        moment = replace(snapshot(servers, reading.at_s), readings=(reading,), routes=routes)
        history, estimated = estimate(history, moment, settings or learning())
    (knowledge,) = estimated.knowledge
    return knowledge


def test_readings_of_servers_that_are_gone_are_not_kept() -> None:
    history = LearningHistory()
    for second, name in enumerate("abc"):
        moment = replace(snapshot([server(name)], NOW_S + second), readings=(seen(second, 10.0, name=name),))
        history = observe_batches(history, moment, learning())
    assert history.opened.keys() == {"c"}
    assert history.totals[CLASSIFIER][1][0].executions == 30.0


@pytest.mark.parametrize(("batches", "times"), [(BATCHES, (6.0, 6.0)), (BATCHES[1:], (7.5, 0.01)), (FEW, (0.0, GUESS_MS))])
def test_service_times_are_fitted_over_batch_sizes(batches: tuple[BatchCounters, ...], times: tuple[float, float]) -> None:
    assert astuple(fitted(batches)) == pytest.approx(times)


class TestContention:
    ONE, TWO = (BatchCounters(1, 200, 200 * 20_000.0),), (BatchCounters(1, 100, 100 * 40_000.0),)

    def test_a_number_of_busy_instances_that_was_never_seen_is_counted_on_for_twice_the_speed_at_most(self) -> None:
        times, contention = learnt_of({1: self.ONE, 3: FEW[:0]})
        assert times.of(1) == pytest.approx(20.0, abs=0.02)
        assert [slowdown(contention, busy) / slowdown(contention, 1) for busy in (1, 2, 3)] == pytest.approx([1.0, 1.5, 2.0])
        assert 64 / slowdown(contention, 64) < 2.0

    def test_a_device_on_which_instances_only_slow_each_other_is_planned_for_no_more_than_it_has_shown(self) -> None:
        _, contention = learnt_of({1: self.ONE, 2: self.TWO})
        assert [busy / slowdown(contention, busy) for busy in (1, 2, 4, 8)] == pytest.approx([1.0] * 4, abs=0.01)

    def test_instances_that_do_not_slow_each_other_are_found_out_step_by_step(self) -> None:
        _, contention = learnt_of({1: self.ONE, 4: self.ONE})
        assert [slowdown(contention, busy) for busy in (2, 4, 8)] == pytest.approx([1.0, 1.0, 1.5], abs=0.002)

    def test_between_two_numbers_that_were_seen_the_slowdown_is_linear_and_few_batches_say_nothing(self) -> None:
        few = (BatchCounters(1, 29, 29 * 500_000.0),)
        _, contention = learnt_of({1: self.ONE, 2: few, 3: self.TWO})
        assert [slowdown(contention, busy) for busy in (1, 2, 3)] == pytest.approx([1.0, 1.5, 2.0], abs=0.01)

    def test_batches_count_for_the_busy_instances_that_they_met(self) -> None:
        alone = [seen(float(second), 20.0 * second) for second in range(4)]
        both = [seen(4.0 + second, 60.0 + 45.0 * second, ms=40.0) for second in range(1, 4)]
        history = LearningHistory()
        for reading in (*alone, replace(both[0], at_s=NOW_S + 3.5), *both):
            moment = replace(snapshot([server("a", (1, 2))], reading.at_s), readings=(reading,))
            history = observe_batches(history, moment, learning())
        levels = {busy: sum(batch.executions for batch in batches) for busy, batches in history.totals[CLASSIFIER].items()}
        assert levels.keys() == {1, 2}
        assert levels[2] >= 90.0

    def test_a_new_number_of_busy_instances_is_planned_with_at_once(self) -> None:
        def after(now: ThemisConfig, *contention: tuple[int, float]) -> ThemisConfig:
            times = LearntTimes(CLASSIFIER, 150.0, 2.0, 5.0, contention)
            return with_learnt_times(now, (PipelineKnowledge("video", True, (times,)),))

        first = after(learning(), (1, 1.0))
        assert first.models[CLASSIFIER].profile.table.latency_ms[0][:3] == (7.0, 10.5, 14.0)
        assert after(first, (1, 1.0)) is first
        second = after(first, (1, 1.0), (2, 1.2))
        assert second.models[CLASSIFIER].profile.table.latency_ms[0][:2] == (7.0, 8.4)


def test_nothing_is_learnt_where_every_model_has_a_profile() -> None:
    history, estimated = estimate(History(), replace(snapshot([server("a")]), readings=(seen(0.0, 500.0),)), config())
    assert (estimated.knowledge, history.learning.totals) == ((), {})


class TestKnowledge:
    def test_what_a_server_executed_before_the_first_reading_counts(self) -> None:
        knowledge = known(seen(0.0, 120.0))
        assert (knowledge.enough, knowledge.requests_missing) == (True, 0.0)
        (learnt,) = knowledge.models
        assert astuple(learnt)[1:4] == pytest.approx((120.0, 20.0, 0.01))

    def test_servers_add_up_and_a_restart_counts_from_zero(self) -> None:
        knowledge = known(seen(0.0, 30.0), seen(1.0, 20.0, name="b"), seen(2.0, 35.0), seen(3.0, 5.0), seen(4.0, 6.0))
        assert knowledge.models[0].executions == 30 + 20 + 5 + 5 + 1
        assert not knowledge.enough
        assert known(seen(0.0, 30.0), seen(1.0, 5.0, size=2)).models[0].executions == 35

    def test_the_missing_traffic_is_told_in_requests_and_seconds(self) -> None:
        knowledge = known(*(seen(0.5 * step, 5.0 * step) for step in range(9)))
        assert knowledge.requests_missing == pytest.approx(60.0)
        assert knowledge.seconds_missing == pytest.approx(6.0, rel=0.2)
        assert known(seen(0.0, 5.0)).seconds_missing is None

    def test_a_reading_without_batches_says_nothing(self) -> None:
        blind = replace(seen(1.0, 500.0), batches_error="no answer")
        assert known(seen(0.0, 30.0), blind).models[0].executions == 30


class TestActing:
    @staticmethod
    def guarded(target: Target, *, held: bool = True) -> tuple[Target, list[ClampKind]]:
        bare = replace(server("a", (2, 2)), models={} if not held else server("a", (2, 2)).models)
        result, clamps = guard(target, snapshot([bare]), learning())
        return result, [clamp.kind for clamp in clamps]

    def test_what_needs_an_unknown_model_stays_as_it_is(self) -> None:
        changed = {DETECTOR: ModelState(3, 8), CLASSIFIER: ModelState(5, 8)}
        result, kinds = self.guarded(Target({"a": changed}, {"cpu:1": changed}))
        assert result == Target({"a": {DETECTOR: ModelState(3, 8), CLASSIFIER: ModelState(2, 8)}})
        assert kinds == [ClampKind.LEARNING]

    def test_a_server_with_an_unknown_model_is_not_retired(self) -> None:
        result, kinds = self.guarded(Target({"a": server("a", (2, 2)).models}, retire=("a",)))
        assert (result.retire, kinds) == ((), [ClampKind.LEARNING])

    @pytest.mark.parametrize(("lost", "coming", "launches"), [(0, False, 0), (1, False, 1), (1, True, 0), (2, True, 1), (3, False, 2)])
    def test_servers_that_were_lost_are_replaced(self, lost: int, launches: int, *, coming: bool) -> None:
        servers = [server("a", (2, 2)), *([replace(server("b", (2, 2)), phase=Phase.LAUNCHING)] if coming else [])]
        states = server("a", (2, 2)).models
        target = Target({each.name: each.models for each in servers}, {"cpu:1": states, "cpu:2": states})
        result, _ = guard(target, replace(snapshot(servers), recently_crashed=lost), learning())
        assert len(result.launch) == launches

    def test_a_first_server_may_come_so_that_there_is_something_to_learn(self) -> None:
        launch = {"cpu:1": {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(1, 8)}}
        assert self.guarded(Target({"a": {}}, launch), held=False) == (Target({"a": {}}, launch), [])

    def test_learnt_times_become_the_profile_and_are_fitted_anew_after_twice_as_many(self) -> None:
        settings = learning()

        def after(executions: float, now: ThemisConfig) -> ThemisConfig:
            return with_learnt_times(now, (PipelineKnowledge("video", True, (LearntTimes(CLASSIFIER, executions, 2.0, 5.0),)),))

        assert after(99.0, settings) is settings
        first = after(100.0, settings)
        profile = first.models[CLASSIFIER].profile
        assert (profile.is_guess, profile.learnt_from) == (False, 100.0)
        assert [row[0] for row in profile.table.latency_ms[:3]] == [7.0, 9.0, 11.0]
        assert after(199.0, first) is first
        assert after(200.0, first).models[CLASSIFIER].profile.learnt_from == 200.0
        assert with_learnt_times(config(), (PipelineKnowledge("video", True, (LearntTimes(CLASSIFIER, 100.0, 2.0, 5.0),)),)) == config()


class TestWords:
    FEW = PipelineKnowledge("video", False, (LearntTimes(CLASSIFIER, 34.0, 0.0, 10.0),), 66.0, 5.4)
    MANY = PipelineKnowledge("video", True, (LearntTimes(CLASSIFIER, 240.0, 4.1, 8.0),))

    def test_what_is_missing_and_how_much_traffic_it_takes(self) -> None:
        assert knowledge_words(self.FEW, advisory=True) == (
            "video: not enough is known to act, so it stays as it is: video-classifier has 34 of 100 executions; "
            "about 66 more requests are needed, 5 s at the present rate. Fix: send traffic, or run `themis profile`"
        )
        assert "are needed; there is no traffic. Fix" in knowledge_words(replace(self.FEW, seconds_missing=None), advisory=True)

    def test_what_is_known_and_what_turns_it_on(self) -> None:
        times = "video: enough is known to act: video-classifier takes 8.0 ms a batch and 4.1 ms a request (240 executions)"
        assert knowledge_words(self.MANY, advisory=True) == f"{times}. To act: set mode: active and run `themis reload`"
        assert knowledge_words(self.MANY, advisory=False) == f"{times}; plans are carried out"

    def test_each_pipeline_is_told_once_when_it_is_known(self) -> None:
        learnt, base = Learning(), record()
        first, second = (replace(base, estimate=replace(base.estimate, knowledge=(each,))) for each in (self.FEW, self.MANY))
        assert learnt.events(first, Mode.ADVISORY) == ()
        (event,) = learnt.events(second, Mode.ADVISORY)
        assert (event.kinds, event.sentence) == (("service_times_learnt",), knowledge_words(self.MANY, advisory=True))
        assert learnt.events(second, Mode.ADVISORY) == ()


class TestSettings:
    TEXT = (
        "models: {{a: {{max_batch: 2{profile}}}}}\npipelines: {{v: {{stages: [a], slo_ms: 5}}}}\n"
        "servers: {{s: {{grpc: 127.0.0.1:1, http: 127.0.0.1:2, metrics: 127.0.0.1:3, device: cpu:0}}}}\n"
    )

    def write(self, folder: Path, profile: str) -> Path:
        path = folder / "themis.yaml"
        path.write_text(self.TEXT.format(profile=profile))
        return path

    @pytest.mark.parametrize("profile", ["", ", profile: {learn: true}", ", profile: {learn: true, server_launch_s: 3}"])
    def test_a_model_without_a_profile_is_learnt_whatever_its_slo(self, tmp_path: Path, profile: str) -> None:
        loaded = load_settings(self.write(tmp_path, profile)).models["a"].profile
        assert (loaded.is_guess, loaded.server_launch_s) == (True, 3.0 if "3}" in profile else 5.0)
        assert loaded.table.latency_ms[0][0] == GUESS_MS

    def test_validate_and_plan_say_that_the_times_are_a_guess(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.write(tmp_path, "")
        path.write_text(path.read_text().replace("slo_ms: 5", "slo_ms: 100"))
        assert validate_command(path, live=False, as_json=False) == 0
        assert "note    pipelines.v: a has no profile: its service times are learnt" in capsys.readouterr().out
        plan_command(PlanFlags(path, "5", WhatIf()))
        assert "a has no profile: these plans are of a guess. Fix: run `themis profile`" in capsys.readouterr().out

    def test_a_surface_that_is_given_is_not_learnt(self, tmp_path: Path) -> None:
        both = ", profile: {learn: true, surface: {form: contention, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 1}}"
        (problem,) = problems(self.write(tmp_path, both))
        assert (problem.error, problem.fix) == ("`learn` and `surface` are set", "remove `learn`: `surface` is known")
