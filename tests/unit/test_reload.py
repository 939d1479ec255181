"""Settings that are edited while the sidecar runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, config, server
from themis_triton.act.launch_rests import SAME_FAILURES
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.errors import SettingsError, WarmupFailedError
from themis_triton.core.model_config import ModelInputs
from themis_triton.core.observation import launch_of
from themis_triton.core.pipeline_config import Overload
from themis_triton.core.retention import RetentionConfig
from themis_triton.core.routes import RouteLimit
from themis_triton.daemon.components import Components, build_observer
from themis_triton.daemon.learning import keep_learnt_times
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.reload import SettingsChange, changed_models, settings_change
from themis_triton.daemon.settings_watch import edit_notice
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.settings.files import stamp_of

Edit = Callable[[ThemisConfig], ThemisConfig]
CURRENT = config()


def change(edit: Edit) -> SettingsChange:
    return settings_change(CURRENT, edit(CURRENT))


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda c: c, ()),
        (lambda c: replace(c, mode=Mode.ADVISORY), ("mode",)),
        (lambda c: replace(c, policy=replace(c.policy, tick_s=0.5), prices=replace(c.prices, server=7.0)), ("prices", "policy")),
        (lambda c: replace(c, pipelines=(replace(c.pipelines[0], slo_ms=100.0, weight=2.0),)), ("pipelines",)),
        (lambda c: replace(c, models=c.models | {DETECTOR: replace(c.models[DETECTOR], max_instances=3)}), ("models",)),
    ],
)
def test_what_the_ticks_alone_read_changes_at_once(edit: Edit, changed: tuple[str, ...]) -> None:
    result = change(edit)
    assert (result.changed, result.waiting, result.config) == (changed, (), edit(CURRENT))
    assert result.sentence == f"settings reloaded: {'changed ' + ', '.join(changed) if changed else 'nothing changed'}"


@pytest.mark.parametrize(
    ("edit", "waiting"),
    [
        (lambda c: replace(c, state_directory=Path("/elsewhere")), "state_directory"),
        (lambda c: replace(c, launch=None), "launch"),
        (lambda c: replace(c, callees={"a": ("b",)}), "calls"),
        (lambda c: replace(c, pipelines=(replace(c.pipelines[0], name="other"),)), "pipelines"),
        (lambda c: replace(c, pipelines=(replace(c.pipelines[0], overload=Overload.SHED),)), "pipelines"),
        (lambda c: replace(c, models=c.models | {"new": replace(c.models[DETECTOR], name="new")}), "models"),
        (lambda c: replace(c, policy=replace(c.policy, deprioritize_after_slo_fraction=0.5)), "policy"),
    ],
)
def test_what_adapters_were_built_from_waits_for_a_restart(edit: Edit, waiting: str) -> None:
    both = change(lambda c: replace(edit(c), mode=Mode.ADVISORY))
    assert (both.changed, both.waiting) == (("mode",), (waiting,))
    assert both.config == replace(CURRENT, mode=Mode.ADVISORY)
    assert f"{waiting} stay as they were until a restart. Fix: `themis stop`, then `themis run`" in both.sentence


def test_the_inputs_of_a_models_warm_up_change_at_once_as_part_of_its_section() -> None:
    def with_inputs(base: ThemisConfig) -> ThemisConfig:
        assert base.launch is not None
        return replace(base, launch=replace(base.launch, inputs={DETECTOR: ModelInputs(file=Path("real.npz"))}))

    result = change(with_inputs)
    assert (result.changed, result.waiting) == (("models",), ())
    assert result.config.launch is not None
    assert result.config.launch.inputs[DETECTOR].file == Path("real.npz")
    assert changed_models(CURRENT, result.config) == {DETECTOR}


def test_service_times_that_were_learnt_outlive_a_reload_of_other_keys_and_end_with_an_edited_profile() -> None:
    def with_profile(base: ThemisConfig, learnt_from: float, init_s: float = 0.5) -> ThemisConfig:
        profile = replace(base.models[DETECTOR].profile, learnt_from=learnt_from, instance_init_s=init_s)
        return replace(base, models=base.models | {DETECTOR: replace(base.models[DETECTOR], profile=profile)})

    guessed, planned = with_profile(CURRENT, 0.0), with_profile(CURRENT, 300.0)
    edited = replace(guessed, mode=Mode.ADVISORY)
    assert keep_learnt_times(edited, guessed, planned).models == planned.models
    other = with_profile(edited, 0.0, init_s=2.0)
    assert keep_learnt_times(other, guessed, planned) is other
    assert keep_learnt_times(edited, guessed, guessed) is edited


@pytest.mark.parametrize(
    ("edit", "notice"),
    [
        (lambda c: c, "None"),
        (lambda c: replace(c, mode=Mode.ADVISORY), "the settings file differs from what is in force: mode. Fix: `themis reload`"),
        (
            lambda c: replace(c, launch=None),
            "the settings file differs from what is in force: launch since the sidecar's start. Fix: `themis",
        ),
        (
            lambda c: replace(c, mode=Mode.ADVISORY, launch=None),
            "in force: mode. Fix: `themis reload`; launch since the sidecar's start. Fix",
        ),
    ],
)
def test_what_an_edited_file_says_and_is_not_in_force_is_named_with_the_remedy(edit: Edit, notice: str) -> None:
    assert notice in str(asyncio.run(edit_notice(lambda: edit(CURRENT), lambda: CURRENT)))


def test_an_edit_that_would_be_refused_is_told_before_a_reload() -> None:
    def refuse() -> ThemisConfig:
        raise SettingsError("themis.yaml: 2 errors\nthemis.yaml:1:1: mode: …")

    expected = "the settings file would be refused (themis.yaml: 2 errors); what was read before is in force. Fix: `themis validate`"
    assert asyncio.run(edit_notice(refuse, lambda: CURRENT)) == expected


def test_edits_of_settings_and_of_their_profiles_show_in_the_files_stamps(tmp_path: Path) -> None:
    path, profile = tmp_path / "themis.yaml", tmp_path / "a.yaml"
    stamps = [stamp_of(path)]
    for file, text in ((path, "models: {a: {profile: a.yaml}}"), (profile, "x"), (profile, "xy"), (path, "models: [")):
        file.write_text(text)
        assert stamp_of(path) == stamp_of(path)
        stamps.append(stamp_of(path))
    assert len(set(stamps)) == len(stamps)


def test_a_running_sidecar_takes_up_good_settings_and_refuses_bad_ones(tmp_path: Path) -> None:
    settings = replace(CURRENT, state_directory=tmp_path)
    patient = replace(settings.policy, retry_backoff_s=7.0)
    small = RetentionConfig(journal_bytes=2**20)
    assert settings.launch is not None
    inputs = {DETECTOR: ModelInputs(file=Path("real.npz"))}
    changed = replace(settings, mode=Mode.ADVISORY, policy=patient, retention=small, launch=replace(settings.launch, inputs=inputs))
    edited: list[ThemisConfig | SettingsError] = [changed, SettingsError("themis.yaml:1:1")]

    def read() -> ThemisConfig:
        result = edited.pop(0)
        if isinstance(result, SettingsError):
            raise result
        return result

    async def scenario() -> None:
        bench, clock = Bench(server("a", slot="cpu:0")), SystemClock()
        journal, observer = Journal(tmp_path / "journal.sqlite"), build_observer(settings, clock)
        envoy, routes = EnvoyProcess(settings.envoy, tmp_path), EnvoyFiles(settings.envoy)
        components = Components(settings, bench.world, bench.control, bench.launcher, journal, envoy, routes, clock, observer)
        board = StatusBoard(settings, clock.now_s())
        loop = Loop(components, Planner(build_rules(settings)), board, Exporter(), read_settings=read)
        await loop.reload_settings()
        assert len(edited) == 2
        bench.executor.routes.limits = {DETECTOR: RouteLimit(10.0, 5)}
        for model in (DETECTOR, CLASSIFIER):
            for _ in range(SAME_FAILURES):
                bench.executor.rests.failed("cpu:1", WarmupFailedError("", model, "a bad shape", ""), {model: "1"}, "s")
        for _ in range(2):
            loop.note_edit("mode differs. Fix: `themis reload`")
        assert board.status().settings_edited == "mode differs. Fix: `themis reload`"
        for _ in range(2):
            loop.reload.set()
            assert await loop.has_moved()
            await loop.reload_settings()
        await loop.tick()
        assert board.status().mode == "advisory"
        assert bench.executor.routes.limits == {}
        assert bench.launcher.inputs[DETECTOR] == inputs[DETECTOR]
        assert list(bench.executor.resting) == [launch_of("cpu:1", CLASSIFIER)], "the other model's settings changed"
        assert (journal._writer.max_bytes, loop.components.config.retention) == (2**20, small)
        assert loop.planner.rules.config.policy.retry_backoff_s == bench.executor.backoff.first_s == 7.0
        assert board.status().settings_edited is None
        assert [(event.kinds, event.sentence) for event in board.events] == [
            (("settings_edited",), "mode differs. Fix: `themis reload`"),
            (("settings_reloaded",), "settings reloaded: changed models, policy, mode, retention"),
            (("settings_refused",), "settings refused, the old ones stay in force: themis.yaml:1:1"),
        ]
        await bench.executor.cancel()
        await bench.supervisor.close()
        for each in (observer, envoy, routes):
            await each.close()
        journal.close()
        with reading(tmp_path / "journal.sqlite") as rows:
            assert [row["reason"] for row in rows.ticks(10, changed_only=True)] == [
                "settings_refused",
                "settings_reloaded",
                "settings_edited",
            ]

    asyncio.run(scenario())
