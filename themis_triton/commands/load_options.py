"""The flags of `themis load` as the load's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.config import ModelInputs, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings
from themis_triton.settings.kinds import ADDRESS_WORDS, parse_address

DEFAULT_SLO_MS = 1000.0


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """The options of the command line."""

    config: Path | None
    address: str | None
    pipelines: tuple[str, ...]
    slo_ms: float | None
    trace: TraceOptions
    shapes: tuple[str, ...]
    seed: int
    out: Path | None
    data: Path | None = None
    tls: TlsFlags = field(default_factory=TlsFlags)
    bearer_file: Path | None = None


def options_from(flags: LoadFlags) -> LoadOptions:
    """The load's options. SettingsError names the flag that is missing or wrong."""
    config = load_settings(flags.config) if flags.config is not None else None
    address = _address(flags, config)
    names = flags.pipelines or ((config.pipelines[0].name,) if config is not None else ())
    if not names:
        raise SettingsError("--pipeline is missing: expected NAME=MODEL,MODEL. Fix: give it, or settings with -c")
    pipelines = tuple(_pipeline(name, flags, config) for name in names)
    inputs = {} if config is None else {name: model.inputs for name, model in config.models.items()}
    if flags.data is not None:
        inputs = {model: ModelInputs(file=flags.data) for pipeline in pipelines for model in pipeline.stages}
    return LoadOptions(
        address=address,
        pipelines=pipelines,
        seed=flags.seed,
        shapes=shapes_from(flags.shapes),
        inputs=inputs,
        out=flags.out,
        bearer_file=flags.bearer_file,
    )


def _address(flags: LoadFlags, config: ThemisConfig | None) -> str:
    """Where the load goes, with TLS if the flags say so."""
    text = flags.address or (config.envoy.grpc_listen.authority if config is not None else None)
    if text is None:
        raise SettingsError("--address is missing: expected host:port. Fix: give it, or settings with -c")
    if flags.address is None and config is not None and config.envoy.tls is not None and flags.tls.ca is None:
        named = config.envoy.tls.certificate
        raise SettingsError(f"--ca is missing: envoy.tls is set: expected the PEM file of the authority of {named}. Fix: give --ca FILE")
    if flags.tls == TlsFlags():
        return text
    address = parse_address(text)
    if address is None:
        raise SettingsError(f"--address: {text} is invalid: expected {ADDRESS_WORDS}")
    return str(flags.tls.applied(address))


def _pipeline(text: str, flags: LoadFlags, config: ThemisConfig | None) -> PipelineLoad:
    name, equals, stages = text.partition("=")
    if equals:
        return PipelineLoad(name, tuple(stages.split(",")), flags.slo_ms or DEFAULT_SLO_MS, flags.trace)
    known = {pipeline.name: pipeline for pipeline in (config.pipelines if config is not None else ())}
    if name not in known:
        allowed = ", ".join(known) or "none, because -c is not given"
        raise SettingsError(f"--pipeline: {text} is invalid: expected NAME=MODEL,MODEL, or a pipeline of the settings: {allowed}")
    return PipelineLoad(name, known[name].client_calls, flags.slo_ms or known[name].slo_ms, flags.trace)


def shapes_from(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The sizes by input name of `MODEL.INPUT=N,N`. SettingsError for any other text."""
    return dict(_shape(text) for text in texts)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    if not equals or not all(size.isdigit() for size in sizes.split(",")):
        raise SettingsError(f"--shape: {text} is invalid: expected MODEL.INPUT=N,N with whole numbers")
    return name, tuple(int(size) for size in sizes.split(","))
