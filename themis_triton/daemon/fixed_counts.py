"""Adopted servers whose models cannot be changed, such as those with model control `none` or `poll`: planned without changes in place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from themis_triton.core.action import OutcomeKind
from themis_triton.core.config import ThemisConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import Models, Phase, Server
from themis_triton.core.record import TickRecord
from themis_triton.daemon.components import Components
from themis_triton.ports import ModelControl

log = structlog.get_logger()
ASK_AGAIN_S = 10.0


async def find_fixed(components: Components) -> dict[str, str]:
    """The adopted servers that refuse changes, each with the reason and the remedy; said once in the log."""
    fixed = {}
    for server in components.world.executor.fleet.all():
        if server.launched or server.phase is not Phase.SERVING:
            continue
        try:
            reason = await components.control.read_refusal(server)
        except ServerError as error:
            log.warning("server_unreachable", server=server.name, error=str(error))
            continue
        if reason is not None:
            fixed[server.name] = reason
            log.warning("model_control_missing", server=server.name, message=_words(reason))
    return fixed


@dataclass(slots=True)
class FixedWatch:
    """Asks adopted servers beside the ticks whether they take changes: one may come after the sidecar, or restart in another mode.

    A server is asked when it begins to serve, after it refused a change, and every few seconds while it takes none.
    """

    _serving: frozenset[str] = frozenset()
    _due: set[str] = field(default_factory=set)
    _asked_at_s: float = float("-inf")
    _asking: asyncio.Task[dict[str, str | None]] | None = None
    _counts: dict[str, Models] | None = None

    def follow(self, record: TickRecord, fixed: Mapping[str, str], control: ModelControl) -> dict[str, str] | None:
        """The servers that refuse changes now, each with the reason; None where neither these nor their counts have changed."""
        snapshot, answers = record.snapshot, self._answers()
        for name, reason in answers.items():
            if reason is not None and reason != fixed.get(name):
                log.warning("model_control_missing", server=name, message=_words(reason))
            elif reason is None and name in fixed:
                log.info("model_control_found", server=name, message="its models can be changed now")
        now = {name: reason for name, reason in {**fixed, **answers}.items() if reason is not None}
        self._ask(record, now, control)
        counts = {server.name: server.models for server in snapshot.servers if server.name in now}
        before, self._counts = self._counts, counts
        return now if now != fixed or (before is not None and before != counts) else None

    def _answers(self) -> dict[str, str | None]:
        if self._asking is None or not self._asking.done():
            return {}
        asked, self._asking = self._asking.result(), None
        self._due -= asked.keys()
        return asked

    def _ask(self, record: TickRecord, fixed: Mapping[str, str], control: ModelControl) -> None:
        servers = {s.name: s for s in record.snapshot.servers if not s.launched and s.phase is Phase.SERVING}
        at_s = record.snapshot.at_s
        again = fixed.keys() if at_s - self._asked_at_s >= ASK_AGAIN_S else set[str]()
        refused = {each.action.server for each in record.outcomes if each.kind is OutcomeKind.REFUSED}
        self._due |= (servers.keys() - self._serving) | (servers.keys() & refused) | (servers.keys() & again)
        self._serving = frozenset(servers)
        due = [servers[name] for name in sorted(self._due & servers.keys())]
        if due and self._asking is None:
            self._asked_at_s = at_s
            self._asking = asyncio.create_task(_refusals(due, control))


async def _refusals(servers: Sequence[Server], control: ModelControl) -> dict[str, str | None]:
    """Why each refuses all changes; None: it takes them. One that does not answer is absent."""
    answers: dict[str, str | None] = {}
    for server in servers:
        with contextlib.suppress(ServerError):
            answers[server.name] = await control.read_refusal(server)
    return answers


def _words(reason: str) -> str:
    return f"{reason}; its instance counts stay as they are"


def fixed_actuators(fixed: Mapping[str, str], servers: Sequence[Server]) -> dict[str, str]:
    """The reasons by actuator, for each model of each of these servers."""
    return {f"{server.name}/{model}": fixed[server.name] for server in servers if server.name in fixed for model in sorted(server.models)}


def with_fixed_counts(config: ThemisConfig, fixed: Mapping[str, str], servers: Sequence[Server]) -> ThemisConfig:
    """The settings with the counts that these servers run as the bounds of their models, so that plans scale by servers alone."""
    models = dict(config.models)
    for name, model in config.models.items():
        measured = model.profile.table.instances[-1]
        counts = [server.models[name].instances for server in servers if server.name in fixed and name in server.models]
        if counts:
            low, high = (min(measured, max(1, count)) for count in (min(counts), max(counts)))
            models[name] = replace(model, min_instances=low, max_instances=high)
    return replace(config, models=models)


def changeable(config: ThemisConfig, components: Components, fixed: Mapping[str, str]) -> ThemisConfig:
    """The settings as far as the adopted servers let models be changed; `fixed`: those that do not, with the reasons."""
    executor = components.world.executor
    servers = executor.fleet.all()
    executor.unchangeable = fixed_actuators(fixed, servers)
    return with_fixed_counts(config, fixed, servers)
