"""Models that servers are expected to serve and do not: loaded again, or else the server is replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from themis_triton.act.executor import Executor, actuator_of
from themis_triton.core.action import Action, ActionKind
from themis_triton.core.estimate import ModelFailure
from themis_triton.core.fleet import Models, ModelState, Phase, Server
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.ports import ServerLauncher

REPAIR = "repair"
MAX_RELOADS = 2
"""A launched server on which so many reloads of a model have failed is replaced."""
RELAPSE_S = 300.0
"""The server of a model that fails again so soon after its ejection is replaced; where that cannot be, the next reload waits so long."""
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Absence:
    """A model that a server lacks or fails: the state to load again, and what happened in words.

    `failing`: it is READY there. `relapsed`: it failed again soon after a reload; the next one waits until `until_s`.
    """

    state: ModelState
    words: str
    failing: bool = False
    relapsed: bool = False
    until_s: float = float("-inf")


@dataclass(slots=True)
class Repairs:
    """The models that each server is expected to hold, remembered from its adoption or launch, and those of them that it lacks."""

    executor: Executor
    incidents: list[Incident]
    launcher: ServerLauncher | None = None
    _expected: dict[str, Models] = field(default_factory=dict)
    _absences: dict[Pair, _Absence] = field(default_factory=dict)
    _ejected_at_s: dict[Pair, float] = field(default_factory=dict)
    _restored_at_s: dict[Pair, float] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)

    def note(self, now_s: float) -> bool:
        """Remember what running servers hold, and end the absences of models that are back; returns whether the routes change."""
        returned = self._return_last()
        known = {server.name: server for server in self.executor.fleet.all()}
        self._expected = {name: models for name, models in self._expected.items() if name in known}
        for times in (self._ejected_at_s, self._restored_at_s):
            for pair in [pair for pair in times if pair[0] not in known]:
                del times[pair]
        for server in known.values():
            if server.phase is Phase.SERVING:
                loaded = {name: state for name, state in server.models.items() if state.instances}
                self._expected[server.name] = self._expected.get(server.name, {}) | loaded
        self._return_last()
        for name, model in list(self._absences):
            if name not in known:
                del self._absences[name, model]
            elif model in known[name].models:
                del self._absences[name, model]
                self._restored_at_s[name, model] = now_s
                self._tell(IncidentKind.MODEL_RESTORED, name, model, f"{model} serves on {name} again")
        return returned

    def _return_last(self) -> bool:
        """A model that fails on one server is better than none: it returns to the routes where no other server serves it any more."""
        fleet, before = self.executor.fleet, self.executor.fleet.all()
        for (name, model), absence in self._absences.items():
            others = any(model in s.models and s.phase is Phase.SERVING for s in fleet.all() if s.name != name)
            if absence.failing and not others and name in fleet and (name, model) not in self.executor.loading:
                fleet.set_model(name, model, absence.state)
        return fleet.all() != before

    def unloaded(self, server: Server, models: Mapping[str, ModelState]) -> None:
        """Note which expected models a server does not run, by a reading of its own."""
        for model, state in self._expected.get(server.name, {}).items():
            if model not in models and (server.name, model) not in self._absences:
                words = f"{model} is not READY on {server.name} any more, and Themis did not unload it"
                self._absences[server.name, model] = _Absence(state, words)
                self._tell(
                    IncidentKind.MODEL_UNLOADED,
                    server.name,
                    model,
                    f"{words}; only other servers that hold it answer its requests until it is loaded again",
                )

    def eject(self, failures: Iterable[ModelFailure], now_s: float) -> bool:
        """Take models that fail on one server out of its routes, as long as others serve them; returns whether any was.

        A failure that began before the model's last reload there is an old one.
        """
        everywhere = {failure.model: failure for failure in failures if failure.server is None}
        self._note_broken(everywhere)
        ejected = [f for f in failures if f.server is not None and self._eject(f.server, f, now_s)]
        return bool(ejected)

    def _eject(self, name: str, failure: ModelFailure, now_s: float) -> bool:
        fleet, pair = self.executor.fleet, (name, failure.model)
        if name not in fleet or failure.since_s < self._restored_at_s.get(pair, float("-inf")):
            return False
        server = fleet.get(name)
        others = [s for s in fleet.all() if s.name != name and s.phase is Phase.SERVING and failure.model in s.models]
        if failure.model not in server.models or server.phase is not Phase.SERVING or not others:
            return False
        words = f"{failure.model} failed {failure.failed:.0f} of {failure.ended:.0f} requests on {name}, and other servers serve it"
        relapsed = now_s - self._ejected_at_s.get(pair, float("-inf")) < RELAPSE_S
        until_s = now_s + RELAPSE_S if relapsed else now_s
        self._absences[pair] = _Absence(server.models[failure.model], words, failing=True, relapsed=relapsed, until_s=until_s)
        self._ejected_at_s[pair] = now_s
        fleet.put(replace(server, models={model: state for model, state in server.models.items() if model != failure.model}))
        remedy = "its server is replaced" if relapsed and server.launched else "it is loaded anew"
        self._tell(IncidentKind.MODEL_EJECTED, name, failure.model, f"{words}; it leaves the routes there until {remedy}")
        return True

    def _note_broken(self, everywhere: Mapping[str, ModelFailure]) -> None:
        """Models that every server fails: neither an ejection nor another server would help."""
        for model in self._broken.keys() - everywhere.keys():
            del self._broken[model]
            self._tell(IncidentKind.MODEL_RECOVERED, None, model, f"{model} does not fail every request any more")
        for model, failure in everywhere.items():
            words = f"{model} is broken: every server that got requests for it failed them, {failure.ended:.0f} in the last seconds"
            if model not in self._broken:
                self._tell(IncidentKind.MODEL_BROKEN, None, model, f"{words}; no server is ejected. Fix: the model or what clients send")
            self._broken[model] = words

    def trusted(self, server: str, models: Models) -> Models:
        """What a server runs without the models that fail there, in requests or in the warm-up after their last load."""
        failing = {
            model
            for (name, model), absence in self._absences.items()
            if name == server and (absence.failing or self.executor.backoff.failures(f"{name}/{model}"))
        }
        held = self.executor.fleet.get(server).models if server in self.executor.fleet else models
        failing |= {model for model in models.keys() - held.keys() if self.executor.backoff.failures(f"{server}/{model}")}
        return {model: state for model, state in models.items() if model not in failing}

    def actions(self, servers: Collection[Server], taken: Collection[str], now_s: float) -> tuple[Action, ...]:
        """Reloads, and retirements of servers whose reloads failed; `taken` actuators are busy or in back-off."""
        serving = {server.name: server for server in servers if server.phase is Phase.SERVING}
        chosen: dict[str, Action] = {}
        for (name, model), absence in sorted(self._absences.items()):
            if name not in serving or name in chosen or any(each == name or each.startswith(f"{name}/") for each in self.executor.busy):
                continue
            action = self._reload(name, model, absence)
            given_up = absence.relapsed or self.executor.backoff.failures(actuator_of(action)) >= MAX_RELOADS
            if given_up and _may_go(serving[name], serving.values()):
                action = Action(f"{REPAIR}/{name}", ActionKind.RETIRE, REPAIR, name)
            waits = action.kind is ActionKind.RELOAD and now_s < absence.until_s
            if action.kind is ActionKind.RETIRE and name not in taken:
                self.executor.proofs.lost(serving[name], now_s)
            if actuator_of(action) not in taken and not waits:
                chosen[name] = action
        lacking = [action for name, server in serving.items() if name not in chosen for action in self._ensembles(server, taken)]
        return (*chosen.values(), *lacking)

    def _ensembles(self, server: Server, taken: Collection[str]) -> Iterator[Action]:
        """The load of the first ensemble that a launched server lacks and has all members of: models were loaded into it for it."""
        if self.launcher is None or not server.launched or server.ready_models is None:
            return
        for name in self.launcher.ensembles_of(server.models):
            if name not in server.ready_models:
                if f"{server.name}/{name}" not in taken:
                    yield Action(f"{REPAIR}/{server.name}/{name}", ActionKind.RELOAD, REPAIR, server.name, name)
                return

    @property
    def faults(self) -> tuple[str, ...]:
        """The models that servers lack or fail, a sentence each."""
        lacking = [f"{absence.words}: {self._remedy(*pair)}" for pair, absence in sorted(self._absences.items())]
        return (*lacking, *(words for _, words in sorted(self._broken.items())))

    def _remedy(self, server: str, model: str) -> str:
        actuator = f"{server}/{model}"
        if actuator in self.executor.resting:
            return f"it cannot be loaded again: {self.executor.resting[actuator]}"
        failed = self.executor.backoff.failures(actuator)
        return f"loading it again failed {failed} times" if failed else "it is to be loaded again"

    def _reload(self, server: str, model: str, absence: _Absence) -> Action:
        return Action(f"{REPAIR}/{server}/{model}", ActionKind.RELOAD, REPAIR, server, model, after=absence.state)

    def _tell(self, kind: IncidentKind, server: str | None, model: str, sentence: str) -> None:
        self.incidents.append(Incident(kind, server, sentence, model))


def _may_go(server: Server, serving: Iterable[Server]) -> bool:
    """Whether Themis started the server, and others serve every model that it still holds."""
    held = {model for other in serving if other.name != server.name for model in other.models}
    return server.launched and held >= server.models.keys()
