"""The tick loop's state: one tick, reloaded settings, an operator's overrides, and what each tick leaves in log, status and journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.traces import ActionTraces
from themis_triton.core.action import Plan
from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.decision import Reason
from themis_triton.core.errors import ThemisError
from themis_triton.core.overrides import overridden
from themis_triton.core.record import TickRecord, drift_event_words, sentence
from themis_triton.daemon.components import Components
from themis_triton.daemon.control import is_paused
from themis_triton.daemon.events import EventHub
from themis_triton.daemon.fixed_counts import FixedWatch, changeable, find_fixed
from themis_triton.daemon.learning import LEARNT, Learning, keep_learnt_times, with_learnt_times
from themis_triton.daemon.overrides import OverrideKeeper
from themis_triton.daemon.pacing import is_quiet
from themis_triton.daemon.predictions import PredictionWatch
from themis_triton.daemon.recurring import LEARNT as RISES_LEARNT
from themis_triton.daemon.recurring import Recurring
from themis_triton.daemon.reload import EDITED, REFUSED, RELOADED, SettingsChange, changed_models, settings_change
from themis_triton.daemon.rest_watch import RESTS, RestWatch
from themis_triton.daemon.samples import Samples
from themis_triton.daemon.status import TICK_FAILED, StatusBoard
from themis_triton.daemon.tasks import cancelled_on_exit
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules
from themis_triton.decide.state import PolicyState
from themis_triton.estimate.drift import DriftHistory
from themis_triton.estimate.minutes import Minutes
from themis_triton.tick import Compute, EngineState, at_once, tick

log = structlog.get_logger()
QUIET_LOG_EVERY_TICKS = 60
FIND_FIXED_S = 1.0
"""For how long a reload waits for the servers' word on whether they take changes: no tick runs meanwhile."""
PAUSE_SENTENCES = {
    "paused": "paused by `themis pause`: no server and no route to one is changed; admission limits go on following what serves",
    "resumed": "resumed by `themis resume`: decisions are carried out again",
}


@dataclass(slots=True)
class Loop:
    """The state between ticks. An unexpected error is logged and counted; the next tick starts from the last good state."""

    components: Components
    planner: Planner
    board: StatusBoard
    exporter: Exporter
    compute: Compute = at_once
    state: EngineState = field(default_factory=EngineState)
    last_reason: Reason | None = None
    paused: bool = False
    arrivals: float | None = None
    learning: Learning = field(default_factory=Learning)
    samples: Samples = field(default_factory=Samples)
    minutes: Minutes = field(default_factory=Minutes)
    hub: EventHub = field(default_factory=EventHub)
    keeper: OverrideKeeper | None = None
    fixed: dict[str, str] = field(default_factory=dict)
    recurring: Recurring = field(default_factory=dict)
    watch: FixedWatch = field(default_factory=FixedWatch)
    rests: RestWatch = field(default_factory=RestWatch)
    predictions: PredictionWatch = field(default_factory=PredictionWatch)
    traces: ActionTraces | None = None
    recorded_places: frozenset[tuple[str, str]] = frozenset()
    reload: asyncio.Event = field(default_factory=asyncio.Event)
    read_settings: Callable[[], ThemisConfig] | None = None
    ended_s: float | None = None
    quiet: bool = False
    advisory: Planner = field(init=False)

    def __post_init__(self) -> None:
        """Create both planners once, so that their caches survive a pause."""
        rules = self.planner.rules
        self.advisory = Planner(replace(rules, config=replace(rules.config, mode=Mode.ADVISORY)))

    async def tick(self) -> bool:
        """Run one tick and publish it; returns whether the system is idle, so that the next tick may be delayed."""
        try:
            return await self._tick()
        except Exception as error:
            event = self.board.fail(self.components.clock.now_s(), error)
            if event is not None:
                self.components.journal.record_event(event.at_s, TICK_FAILED, event.sentence)
            self.exporter.tick_failed()
            self.hub.publish(self.board.status)
            log.exception(TICK_FAILED)
            return False

    async def _tick(self) -> bool:
        started_s = asyncio.get_running_loop().time()
        planner = self._planner_now()
        # In advisory mode nothing is refused, paused or not.
        holding = self.paused and self.board.config.mode is Mode.ACTIVE
        if self.recurring is not self.state.history.recurring:
            self.state = replace(self.state, history=replace(self.state.history, recurring=self.recurring))
        before = self.state
        self.state, record = await tick(before, self.components.world, planner, self.compute, paused=holding)
        duration_s = asyncio.get_running_loop().time() - started_s
        self._report_journal()
        self._record_places()
        self.components.journal.record_decided(before, self.state, record, planner.rules.config)
        ended = record.estimate.ended
        self.board.take(record, 1000.0 * duration_s, ended, paused=self.paused)
        self.exporter.take(record, duration_s, paused=self.paused)
        self.exporter.count_requests(self.board.config.pipelines, ended)
        self.exporter.show_times(self.board.config, self._lag_s(started_s), self.components.routes.take_up_s)
        self.board.proxies, self.board.nodes = self.components.routes.proxies, self.components.nodes.reading
        self.exporter.show_proxies(self.board.proxies)
        self.components.journal.record_samples(self.samples.take(record, self.board.config, ended))
        minute = self.minutes.take(record.snapshot, self.board.config, ended)
        if minute is not None:
            self.components.journal.record_minute(*minute)
        if self.traces is not None:
            self.traces.take(record)
        self._log_tick(record)
        self._learn(record)
        self._follow_fixed(record)
        self._follow_drained(record)
        self._follow_predictions(record)
        self.hub.publish(self.board.status)
        self.ended_s = asyncio.get_running_loop().time()
        self.arrivals = sum(route.arrivals for route in record.snapshot.routes)
        self.quiet = is_quiet(record)
        return self.quiet

    def _lag_s(self, started_s: float) -> float:
        """How much later than `tick_s` after the end of the last one a tick began; 0 after one that lets the next one wait."""
        due_s = self.ended_s + self.board.config.policy.tick_s if self.ended_s is not None else started_s
        return 0.0 if self.quiet else max(0.0, started_s - due_s)

    def _learn(self, record: TickRecord) -> None:
        """Plan with service times that were learnt, from the next tick on, and tell when they suffice to act."""
        for event in self.learning.events(record, self.board.config.mode):
            self.components.journal.record_event(event.at_s, LEARNT, event.sentence)
            self.board.events.append(event)
        config = with_learnt_times(self.planner.rules.config, record.estimate.knowledge)
        if config is not self.planner.rules.config:
            self.planner = Planner(build_rules(config), self.planner.forecaster)
            self.__post_init__()
            # Measured times were compared with other ones.
            self.state = replace(self.state, history=replace(self.state.history, drift=DriftHistory()))

    def _follow_fixed(self, record: TickRecord) -> None:
        """Plan without changes of servers that turn out to refuse them, and with those of servers that take them again."""
        fixed = self.watch.follow(record, self.fixed, self.components.control)
        if fixed is not None:
            self.fixed = fixed
            self._plan_by(self.components.config, self.components.config)

    def _follow_drained(self, record: TickRecord) -> None:
        """Tell when the last requests of a drained server have ended; one that Themis launched retires then by itself."""
        drained = {each.server for each in self.board.overrides.drains if each.left and not each.launched}
        for words in self.rests.follow(record.snapshot, drained):
            log.info(RESTS, message=words)
            self.components.journal.record_event(record.snapshot.at_s, RESTS, words)
            self.board.add_event(record.snapshot.at_s, RESTS, words)

    def _follow_predictions(self, record: TickRecord) -> None:
        """Tell when predictions stop to hold, and when they hold again."""
        for kind, words in self.predictions.follow(record.decision.predictions):
            log.warning(kind, message=words)
            self.components.journal.record_event(record.snapshot.at_s, kind, words)
            self.board.add_event(record.snapshot.at_s, kind, words)

    async def reload_settings(self) -> None:
        """Put edited settings into force if it was asked for; wrong ones are refused, and the old ones stay."""
        if not self.reload.is_set() or self.read_settings is None:
            return
        self.reload.clear()
        try:
            change = settings_change(self.components.config, await asyncio.to_thread(self.read_settings))
            await self._apply(change)
        except (ThemisError, OSError) as error:
            kind, words = REFUSED, f"settings refused, the old ones stay in force: {error}"
            log.warning(kind, message=words)
        except Exception as error:
            kind, words = REFUSED, f"settings refused, the old ones stay in force: {type(error).__name__}: {error}"
            log.exception(kind)
        else:
            kind, words = RELOADED, change.sentence
            self.board.settings_edited = replace(change, changed=()).notice
            log.info(kind, changed=change.changed, waiting=change.waiting, message=words)
        now_s = self.components.clock.now_s()
        self.components.journal.record_event(now_s, kind, words)
        self.board.add_event(now_s, kind, words)

    def note_edit(self, notice: str | None) -> None:
        """Show that the settings file says something else than what is in force; None: it does not."""
        if notice is not None and notice != self.board.settings_edited:
            log.warning(EDITED, message=notice)
            now_s = self.components.clock.now_s()
            self.components.journal.record_event(now_s, EDITED, notice)
            self.board.add_event(now_s, EDITED, notice)
        self.board.settings_edited = notice

    async def _apply(self, change: SettingsChange) -> None:
        """Plan by other settings from the next tick on."""
        if not change.changed:
            return
        config, before = change.config, self.components.config
        self.fixed = await self._find_fixed()
        self._plan_by(config, before)
        self.components = replace(self.components, config=config)
        if self.components.launcher is not None and config.launch is not None:
            self.components.launcher.use_inputs(config.launch.inputs)
        self.components.world.executor.rests.end_of(changed_models(before, config))
        self.components.world.executor.at_home.clear()
        self.components.journal.bound(config.retention)
        backoff = self.components.world.executor.backoff
        backoff.first_s, backoff.longest_s = config.policy.retry_backoff_s, config.policy.retry_backoff_max_s
        if config.models != before.models:  # measured times were compared with other ones
            self.state = replace(self.state, history=replace(self.state.history, drift=DriftHistory()))
        if config.policy.name is not before.policy.name:
            self.state = replace(self.state, policy=PolicyState(changed_places=self.state.policy.changed_places))

    def use_recurring(self, recurring: Recurring, words: str) -> None:
        """Keep servers for these rises from the next tick on."""
        self.recurring, now_s = recurring, self.components.clock.now_s()
        log.info(RISES_LEARNT, message=words)
        self.components.journal.record_event(now_s, RISES_LEARNT, words)
        self.board.add_event(now_s, RISES_LEARNT, words)

    def apply_overrides(self) -> None:
        """Put what an operator changed into force, and end the bounds whose time has come."""
        keeper, now_s = self.keeper, self.components.clock.now_s()
        if keeper is None:
            return
        executor = self.components.world.executor
        keeper.note_fleet(executor.routes.left, [server.name for server in executor.fleet.all()])
        for kind, words in keeper.take_events(now_s):
            log.warning(kind, message=words)
            self.components.journal.record_event(now_s, kind, words)
            self.board.add_event(now_s, kind, words)
        if keeper.overrides != self.board.overrides:
            self.board.overrides = keeper.overrides
            self._plan_by(self.components.config, self.components.config)

    async def _find_fixed(self) -> dict[str, str]:
        """The servers that refuse changes, as known so far where one does not answer soon: Triton may be busy with a change for long."""
        finding = asyncio.create_task(find_fixed(self.components))
        async with cancelled_on_exit(finding):
            await asyncio.wait({finding}, timeout=FIND_FIXED_S)
            return finding.result() if finding.done() else self.fixed

    def _plan_by(self, config: ThemisConfig, before: ThemisConfig) -> None:
        """Plan by these settings, under the overrides, from the next tick on."""
        known = keep_learnt_times(changeable(config, self.components, self.fixed), before, self.planner.rules.config)
        planned = overridden(known, self.board.overrides)
        self.planner, self.board.config = Planner(build_rules(planned), self.planner.forecaster), planned
        self.__post_init__()
        if planned.mode is Mode.ADVISORY:  # nothing is refused in it
            self.components.world.executor.submit(Plan(RELOADED, limits={}))

    async def has_moved(self) -> bool:
        """Whether the next tick must start now: settings were edited, a request arrived, Envoy does not answer, or a pause changes."""
        if self.reload.is_set() or is_paused(self.components.config.state_directory) is not self.paused:
            return True
        if self.keeper is not None and self.keeper.overrides != self.board.overrides:
            return True
        return await self.components.observer.count_arrivals() != self.arrivals

    def recall_places(self) -> None:
        """Take up which devices of running servers an earlier sidecar has changed, so that what it began to remove is removed."""
        self.recorded_places = places = self.components.journal.load_places()
        self.state = replace(self.state, policy=PolicyState(changed_places=places))

    def _record_places(self) -> None:
        """Remember which devices of servers the policy has changed."""
        places = self.state.policy.changed_places
        if places != self.recorded_places:
            self.components.journal.record_places(self.recorded_places, places)
            self.recorded_places = places

    def _report_journal(self) -> None:
        """Report that the journal was replaced, or is not written: the next sidecar then has to discover the launched servers."""
        journal = self.components.journal
        for kind, notice in journal.take_notices():
            log.error(kind.value, message=notice)
            now_s = self.components.clock.now_s()
            journal.record_event(now_s, kind.value, notice)
            self.board.add_event(now_s, kind.value, notice)
            self.recorded_places = frozenset()  # a new file has none; in one that lost rows they are written again
        trouble = journal.trouble
        if trouble is not None and trouble != self.board.journal_trouble:
            log.error("journal_write_failed", message=trouble)
        self.board.journal_trouble = trouble

    def _planner_now(self) -> Planner:
        """The planner of the settings, or the advisory one during a pause."""
        paused = is_paused(self.components.config.state_directory)
        if paused is not self.paused:
            kind, now_s = "paused" if paused else "resumed", self.components.clock.now_s()
            log.warning("sidecar_paused" if paused else "sidecar_resumed")
            self.paused = paused
            self.components.journal.record_event(now_s, kind, PAUSE_SENTENCES[kind])
            self.board.add_event(now_s, kind, PAUSE_SENTENCES[kind])
        return self.advisory if paused else self.planner

    def _log_tick(self, record: TickRecord) -> None:
        """Log one line per change, and one every `QUIET_LOG_EVERY_TICKS` ticks without a change."""
        for event in record.estimate.drift_events:
            log.warning("drift_changed", model=event.model, change=event.change.value, message=drift_event_words(event))
        for incident in record.snapshot.incidents:
            where = {"server": incident.server, "model": incident.model}
            known = {key: value for key, value in where.items() if value is not None}
            log.warning(incident.kind.value, **known, message=incident.sentence)
        changed = record.plan.actions or record.outcomes or record.decision.reason is not self.last_reason
        if changed or record.number % QUIET_LOG_EVERY_TICKS == 0:
            log.info("tick_completed", decision=record.decision.id, reason=record.decision.reason.value, message=sentence(record))
        self.last_reason = record.decision.reason
