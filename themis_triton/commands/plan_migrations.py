"""`themis plan --from`: the migration from the current fleet to the plan, step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from themis_triton.core.action import ActionKind
from themis_triton.core.config import PipelineConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.planning import WhatIf, plan_migration
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration import Migration
from themis_triton.solver.migration_steps import Step
from themis_triton.solver.plans import StageSize

MAX_SERVERS = 64
LIVE = "live"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The servers that a migration starts from, in the order in which they are retained. The first `adopted` are never retired."""

    servers: tuple[ServerAssignment, ...]
    adopted: int = 0


def show_paths(console: Console, config: ThemisConfig, rates: Sequence[float], what_if: WhatIf, fleet: Fleet) -> list[Migration]:
    """Print a table of steps from the fleet for each rate; returns the migrations."""
    paths = [plan_migration(config, rate, what_if, fleet.servers, fleet.adopted) for rate in rates]
    for rate, path in zip(rates, paths, strict=True):
        since = f"after {path.slo_holds_after_s:.1f} s" if math.isfinite(path.slo_holds_after_s) else "not even at its end"
        console.print(f"Migration to {rate:g}/s: inside the SLO {since if path.slo_holds_after_s else 'all the time'}", soft_wrap=True)
        console.print(_table(path))
        stages = ", ".join(f"{stage.name} {stage.servers}×{stage.instances}, {stage.batch}" for stage in path.plan.stages)
        console.print(f"Result: {stages}, cost {path.plan.cost:g}/s", soft_wrap=True)
    for sentence in unused_operations(config, paths):
        console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return paths


def unused_operations(config: ThemisConfig, paths: Sequence[Migration]) -> list[str]:
    """A sentence for each model with operations that the running sidecar does not use, whatever a migration says."""
    sentences = []
    for name in dict.fromkeys(stage.name for path in paths for stage in path.plan.stages):
        model = config.models[name]
        refused = [operation for operation in config.operations_of(model) if not model.may(operation)]
        lossy = ", ".join(operation for operation in refused if operation in model.profile.operations)
        unknown = ", ".join(operation for operation in refused if operation not in model.profile.operations)
        reasons = ((lossy, "loses requests, as probed"), (unknown, f"not probed: run `themis probe {name}`"))
        if refused:
            unused = " and ".join(f"{operations} ({reason})" for operations, reason in reasons if operations)
            sentences.append(f"limited: {name}: the sidecar does not use {unused}")
    return sentences


def parse_fleet(text: str, pipeline: PipelineConfig, config: ThemisConfig) -> Fleet:
    """The fleet of `SERVERS:COUNT,COUNT…[:BATCH,BATCH…]`, one count and batch size per stage. Default batches: the settings' maximum."""
    stages = len(pipeline.stages)
    counts = ",".join(["[0-9]+"] * stages)
    match = re.fullmatch(rf"([0-9]+):({counts})(?::({counts}))?", text, re.ASCII)
    bounds = [config.models[stage] for stage in pipeline.stages]
    if match is not None:
        servers, instances = int(match[1]), _numbers(match[2])
        batches = _numbers(match[3]) if match[3] else tuple(model.max_batch for model in bounds)
        if servers <= MAX_SERVERS and min((*instances, *batches)) >= 1:
            states = tuple(map(ModelState, instances, batches))
            return Fleet(tuple(ServerAssignment(f"server-{i + 1}", states) for i in range(servers)))
    form = f"SERVERS:{','.join('N' for _ in bounds)} (counts of {', '.join(pipeline.stages)}; at most {MAX_SERVERS} servers)"
    example = f"2:{','.join(str(model.min_instances) for model in bounds)}"
    raise SettingsError(f'--from: "{text}" is invalid: expected {LIVE} (the running fleet) or {form}. Fix: for example --from {example}')


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def stage_rows(stages: Sequence[StageSize]) -> list[dict[str, Any]]:
    """Stages as JSON rows."""
    return [{"model": s.name, "servers": s.servers, "instances": s.instances, "batch": s.batch} for s in stages]


def path_row(path: Migration) -> dict[str, Any]:
    """A migration as a JSON row; `slo_holds_after_s` null: not even at its end."""
    return {
        "slo_holds_after_s": path.slo_holds_after_s if math.isfinite(path.slo_holds_after_s) else None,
        "ends_after_s": path.ends_after_s,
        "objective": path.objective,
        "feasible": path.plan.feasible,
        "cost": path.plan.cost,
        "predicted_p99_ms": path.plan.predicted_p99_ms if math.isfinite(path.plan.predicted_p99_ms) else None,
        "servers": path.plan.servers,
        "stages": stage_rows(path.plan.stages),
        "steps": [_step_row(step) for step in path.steps],
    }


def _step_row(step: Step) -> dict[str, Any]:
    """A step as a JSON row: instances and batches before and after; of a launch or a retirement all instances of the server."""
    total, state = sum(models.instances for models in step.models.values()), (step.before, step.after)
    instances = [0, total] if step.kind is ActionKind.LAUNCH else [total, 0]
    return {
        "kind": step.kind.value,
        "server": step.server,
        "model": step.model,
        "starts_s": step.starts_s,
        "ends_s": step.ends_s,
        "instances": [at.instances for at in state if at is not None] or instances,
        "batch": [at.max_batch for at in state if at is not None] or [0, 0],
        "requires": list(step.requires),
    }


def _table(path: Migration) -> Table:
    table = Table("step", "from s", "to s", "after", box=SIMPLE_HEAD, pad_edge=False)
    for number, step in enumerate(path.steps):
        requires = ", ".join(str(r + 1) for r in step.requires)
        table.add_row(f"{number + 1}  {escape(_words(step))}", f"{step.starts_s:.1f}", f"{step.ends_s:.1f}", requires)
    if not path.steps:
        table.add_row("no change", "", "", "")
    return table


def _words(step: Step) -> str:
    before, after = step.before, step.after
    if before is None or after is None:
        return f"{step.kind.value} {step.server}"
    batch = f", batches {before.max_batch}→{after.max_batch}" if before.max_batch != after.max_batch else ""
    return f"{step.kind.value} {step.model} on {step.server} {before.instances}→{after.instances}{batch}"
