"""The settings file that `themis init --from` writes: every model of a running server, with what its counters tell of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

from themis_triton.core.address import Address
from themis_triton.core.inventory import HeldModel, Inventory
from themis_triton.core.service_times import ENOUGH_EXECUTIONS, fitted
from themis_triton.settings.kinds import MODEL_NAME_PATTERN

SERVER = "triton"
_SLO_FACTOR, _LEAST_SLO_MS = 10.0, 100.0
_ROOM = 4
_MAX_INSTANCES = 64
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_HEAD = """\
# Settings of Themis for Triton, read from the server at {address} by `themis init --from`.
# advisory: Themis only shows its decisions, so your server stays as it is. active: it carries them out.
# While requests come, Themis compares Triton's counters with each model's `surface` and corrects its plans; `themis status` shows the
# factor. {knowledge}
mode: advisory

servers:
  {server}:
    grpc: {grpc}
    http: {http}
    metrics: {metrics}
{key}{tls}    {devices}
    # model_repository: /models   # name it: without it, the first change of an instance count reloads the model
{notes}"""
_CALLS = """
# The members of each ensemble, planned one after the other. Remove this section once the server's model_repository is named: Themis
# then reads from the ensemble's config.pbtxt which of them run side by side.
calls:
"""
_BLS = """
# A Python model may call others by itself (BLS). Then name them here, so that launched servers get them and plans count their load:
# calls: {{CALLER: [CALLEE]}}. Python models of this server: {models}.
"""


def settings_text(inventory: Inventory) -> str:
    """The file's text. It is valid as it is; SLOs are to be filled in."""
    ensembles = _scaled_ensembles(inventory)
    inner = {step for ensemble in ensembles for step in ensemble.steps}
    scaled = [
        model
        for model in inventory.models
        if not model.steps and _is_allowed(model.name) and (model.name in inner or model.name not in inventory.inner)
    ]
    guessed = [model for model in scaled if model.executions < ENOUGH_EXECUTIONS]
    knowledge = "Every surface is from enough executions to act on; `themis profile` is exact."
    if guessed:
        few = f"{len(guessed)} of {len(scaled)} models have executed too little for that (`learn: true`):"
        knowledge = f"{few}\n# `themis run` learns their service times from traffic, and `themis status` says when enough is known to act."
    devices = _devices(inventory)
    head = _HEAD.format(
        address=inventory.grpc_address.authority,
        knowledge=knowledge,
        server=SERVER,
        grpc=_authority(inventory.grpc_address),
        tls=_tls(inventory.grpc_address),
        key=f"    model_control_key: {json.dumps(inventory.model_control_key)}\n" if inventory.model_control_key is not None else "",
        http=_authority(inventory.http_address),
        metrics=_authority(inventory.metrics_address),
        devices=_device_line(devices, inventory),
        notes="".join(f"# {line}\n" for line in _unscaled(inventory, ensembles)),
    )
    if not scaled:
        return f"{head}\nmodels: {{}}\n\npipelines: {{}}\n"
    models = "".join(line + "\n" for model in scaled for line in _model(model))
    calls = _CALLS + "".join(f"  {_quoted(each.name)}: [{', '.join(map(_quoted, each.steps))}]\n" for each in ensembles)
    fronts = [model for model in inventory.models if model in (*scaled, *ensembles) and model.name not in inner]
    pipelines = "".join(line + "\n" for line in _pipelines(fronts, inventory))
    python = [_quoted(model.name) for model in scaled if model.may_call]
    bls = _BLS.format(models=", ".join(python)) if python else ""
    return f"{head}\nmodels:\n{models}{bls}{calls if ensembles else ''}\npipelines:\n{pipelines}"


def _scaled_ensembles(inventory: Inventory) -> list[HeldModel]:
    """The ensembles whose members, those of inner ensembles too, can all be named in settings."""
    members = {model.name: model.steps for model in inventory.models}

    def is_scaled(name: str, above: tuple[str, ...] = ()) -> bool:
        if name in above or name not in members:
            return False
        return all(is_scaled(step, (*above, name)) for step in members[name]) if members[name] else _is_allowed(name)

    return [model for model in inventory.models if model.steps and is_scaled(model.name)]


def _device_line(devices: Sequence[str], inventory: Inventory) -> str:
    if len(devices) > 1:
        return f"devices: [{', '.join(devices)}]"
    free = any(not model.steps and not model.devices for model in inventory.models)
    return f"device: {devices[0]}{'   # models of KIND_MODEL choose their GPUs: name those here' if free else ''}"


def _devices(inventory: Inventory) -> list[str]:
    """The devices of the server. Beside GPUs the processor is none: a server's devices are of one kind."""
    named = sorted({device for model in inventory.models for device in model.devices}, key=_device_order)
    return [device for device in named if device.startswith("gpu:")] or named or ["cpu:0"]


def _device_order(device: str) -> tuple[str, int]:
    kind, _, number = device.partition(":")
    return kind, int(number)


def _unscaled(inventory: Inventory, ensembles: Sequence[HeldModel]) -> Iterator[str]:
    """What is served as it is, with the reason."""
    for model in inventory.models:
        if model.steps and model not in ensembles:
            yield f"ensemble {_quoted(model.name)} of {', '.join(map(_quoted, model.steps))}: served as it is; the names of all its models"
            yield "  must be names of folders, without control characters."
        elif not model.steps and not _is_allowed(model.name):
            yield f"model {_quoted(model.name)}: served as it is; its name is no folder's, or has control characters."


def _is_allowed(name: str) -> bool:
    return re.match(MODEL_NAME_PATTERN, name) is not None


def _model(model: HeldModel) -> Iterator[str]:
    times = fitted(model.batches)
    yield f"  {_quoted(model.name)}:"
    if model.stateful:
        yield "    # It keeps state between the calls of a sequence: one server has all of its calls, and it is scaled in place only."
    yield f"    instances: [{model.min_instances}, {min(_MAX_INSTANCES, model.max_instances + _ROOM)}]   # on a device; no fewer than now"
    yield f"    max_batch: {model.max_batch}"
    if model.executions < ENOUGH_EXECUTIONS:
        yield f"    profile: {{learn: true}}   # {model.executions:.0f} executions so far"
        return
    yield "    profile:"
    yield f"      # means of {model.executions:.0f} executions"
    surface = f"form: contention, alpha_ms: 0, beta_ms: {times.per_request_ms:.3f}, gamma_ms: 0, zeta_ms: {times.per_batch_ms:.3f}"
    yield f"      surface: {{{surface}}}"


def _pipelines(fronts: Sequence[HeldModel], inventory: Inventory) -> Iterator[str]:
    taken: set[str] = set()
    held = {model.name: model for model in inventory.models}

    def service_ms(model: HeldModel) -> float:
        return sum(service_ms(held[step]) for step in model.steps) if model.steps else fitted(model.batches).of(1)

    for model in fronts:
        name = base = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9_.-]", "-", model.name).strip("-") or "model"
        number = 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        slo_ms = max(_LEAST_SLO_MS, math.ceil(_SLO_FACTOR * service_ms(model)))
        yield f"  {_quoted(name)}: {{model: {_quoted(model.name)}, slo_ms: {slo_ms:g}}}   # fill in: end-to-end SLO"


def _authority(address: Address) -> str:
    """host:port as a YAML scalar: an IPv6 host has brackets, which would begin a list."""
    return json.dumps(address.authority) if ":" in address.host else address.authority


def _tls(address: Address) -> str:
    values = {key: getattr(address, key) for key in ("ca", "certificate", "key", "server_name")}
    keys = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items() if value is not None)
    return f"    tls: {{{keys}}}\n" if keys else ""


def _quoted(name: str) -> str:
    """A YAML scalar, quoted unless it is plain."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name) is not None and name.lower() not in _YAML_WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)
