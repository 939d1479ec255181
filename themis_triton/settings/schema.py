"""The schema of the settings file: its sections, and the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from themis_triton.core.address import Address
from themis_triton.core.client_auth import JwtConfig
from themis_triton.core.config import Mode, StandbyConfig, StandbyKind
from themis_triton.core.policy import PolicyName
from themis_triton.settings.kinds import Count, FilePath, HostPort, Listen, ModelName, Name, PositiveSeconds, Section, Size, refusal
from themis_triton.settings.listener_tls import ListenerTlsSettings
from themis_triton.settings.models import ModelSettings
from themis_triton.settings.pipelines import Callees, PipelineSettings
from themis_triton.settings.policy import PlanningSettings, PolicySettings, PriceSettings
from themis_triton.settings.retention import RetentionSettings
from themis_triton.settings.runtime import DEFAULT_STATE_DIRECTORY, DEFAULT_STATUS_ADDRESS
from themis_triton.settings.servers import LaunchSettings, ServerSettings


class JwtSettings(Section):
    """JSON Web Tokens of clients (`Authorization: Bearer`)."""

    issuer: str = Field(min_length=1, description="the `iss` that a token must have")
    jwks: FilePath = Field(description="JSON file with the issuer's public keys (a JWKS); read again when it changes")
    audiences: list[str] = Field(default=[], description="the `aud` of which a token must have one; by default any is good")

    def to_core(self, resolve: Callable[[Path], Path]) -> JwtConfig:
        """The same with absolute paths."""
        return JwtConfig(self.issuer, resolve(self.jwks), tuple(self.audiences))


class XdsSettings(Section):
    """Routes over xDS, for Envoys of other machines beside the one that reads files."""

    listen: Listen = Field(description="listener of the discovery service (gRPC), such as 0.0.0.0:9190; beyond loopback it needs `tls`")
    tls: ListenerTlsSettings | None = Field(
        default=None, description="TLS of `listen`; with `client_ca` only Envoys with a certificate of that authority get routes"
    )

    @model_validator(mode="after")
    def _known_clients(self) -> XdsSettings:
        known = self.tls is not None and self.tls.client_ca is not None and self.tls.require_client_certificate is not False
        if not known and not Address.parse(self.listen).is_loopback:
            fix = "set `tls` with `certificate`, `key` and `client_ca`, or write a loopback address"
            found = f"`listen: {self.listen}` lets other machines get routes, and keys of TLS, without a certificate"
            raise refusal(found, "certificates of Envoys", fix)
        return self


class EnvoySettings(Section):
    """The proxy that clients connect to."""

    grpc_listen: Listen = Field(default="127.0.0.1:9001", description="listener for gRPC clients")
    http_listen: Listen = Field(default="127.0.0.1:9000", description="listener for HTTP clients")
    admin: HostPort | None = Field(
        default=None,
        description="Envoy's admin address, loopback unless `allow_non_loopback`; by default a Unix socket in `directory` that only this "
        "user can open, while any program on this machine can stop Envoy through a loopback address",
    )
    allow_non_loopback: bool = Field(
        default=False, description="allow other machines to reach `admin`; any client of that address can stop Envoy"
    )
    directory: FilePath | None = Field(default=None, description="folder of Envoy's files; by default `envoy` in `state_directory`")
    managed: bool = Field(
        default=True,
        description="true: Themis starts Envoy if it does not run; false: you start it, with the bootstrap file in `directory`",
    )
    binary: FilePath | None = Field(default=None, description="`envoy`; by default that of the `local` extra")
    max_message: Size = Field(default=64 * 2**20, validate_default=True, description="maximum size of a request or response")
    concurrency: Count = Field(default=1, description="Envoy's worker threads")
    resend_broken: bool = Field(
        default=True,
        description="true: a request whose connection broke after it was sent goes to another server, at most five times, so that "
        "a server that dies costs no request; false: it fails, so that a request that kills its server reaches no other",
    )
    header_timeout_s: PositiveSeconds = Field(default=10, description="time in which a client must have sent a request's headers")
    idle_timeout_s: PositiveSeconds = Field(default=600, description="a client's connection without a request is closed after this time")
    stream_idle_timeout_s: PositiveSeconds = Field(
        default=3600, description="a request or stream on which nothing moves in either direction is ended after this time"
    )
    max_request_s: PositiveSeconds | None = Field(
        default=None,
        description="a request or gRPC stream is ended after this time, even while data moves, so that a client whose key was removed "
        "or whose token has expired cannot go on; by default never",
    )
    max_connections: Count = Field(default=10_000, description="clients' connections at once; further ones are closed")
    max_streams: Count = Field(default=10_000, description="requests at once on one HTTP/2 connection")
    max_memory: Size | None = Field(
        default=None,
        description="Envoy's memory: from 95 % of it on new requests are refused (503), and up to 100 % the largest gRPC requests that run "
        "are ended, never those below 1 MiB; by default a quarter of the machine's memory, or of its control group's limit, from 256MiB to "
        "16GiB",
    )
    api_keys: FilePath | None = Field(
        default=None,
        description="file with a client and its key a line, which other users must not be able to read: requests without one are refused; "
        "by default they need none",
    )
    jwt: JwtSettings | None = Field(default=None, description="JSON Web Tokens that requests need, in place of API keys")
    tls: ListenerTlsSettings | None = Field(default=None, description="TLS of `grpc_listen` and `http_listen`; by default they have none")
    xds: XdsSettings | None = Field(default=None, description="further Envoys, which get their routes over xDS; by default there are none")

    @model_validator(mode="after")
    def _one_way_in(self) -> EnvoySettings:
        if self.api_keys is not None and self.jwt is not None:
            raise refusal("both `api_keys` and `jwt` are set", "one of them", "remove one")
        return self


class StatusSettings(Section):
    """The status API and the daemon's own metrics."""

    address: Listen = Field(default=DEFAULT_STATUS_ADDRESS, description="listener, loopback unless `allow_non_loopback`")
    allow_non_loopback: bool = Field(default=False, description="allow other machines to reach it; its reads need the token then")
    token_file: FilePath | None = Field(
        default=None,
        description="file with the token for calls that change something, which other users must not be able to read; by default "
        "Themis makes `token` in `state_directory`",
    )
    tls: ListenerTlsSettings | None = Field(default=None, description="TLS of `address`; by default it has none")


class StandbySettings(Section):
    """A second sidecar, which takes over."""

    kind: Annotated[StandbyKind, Field(strict=False)] = Field(
        default=StandbyKind.FILE,
        description="what decides who leads. file: a lock in `state_directory`, for two sidecars on one host, the second one with "
        "`--standby`; ray, kubernetes: a lease in the cluster of `launch`, for sidecars on several machines, each with a `state_directory` "
        "of its own",
    )
    lease_s: Annotated[float, Field(ge=1, le=300)] | None = Field(
        default=None,
        description="the next one leads after this time without a renewal of the lease; a leader that cannot renew it stops acting after "
        "two thirds of it; by default 3 with ray, 10 with kubernetes",
    )

    @model_validator(mode="after")
    def _lease_of_a_kind(self) -> StandbySettings:
        if self.lease_s is not None and self.kind is StandbyKind.FILE:
            raise refusal("`lease_s` is set with kind: file", "no such key", "remove it, or set `kind: ray` or `kind: kubernetes`")
        return self

    def to_core(self) -> StandbyConfig:
        """The same with the kind's own default."""
        default_s = 10.0 if self.kind is StandbyKind.KUBERNETES else StandbyConfig().lease_s
        return StandbyConfig(self.kind, self.lease_s if self.lease_s is not None else default_s)


class Settings(Section):
    """The whole file."""

    models: dict[ModelName, ModelSettings] = Field(min_length=1, description="the models that Themis scales, by their names in Triton")
    pipelines: dict[Name, PipelineSettings] = Field(min_length=1, description="chains of models with their SLOs, by names of your choice")
    calls: dict[str, Callees] | None = Field(
        default=None,
        description="the models that a model calls by itself inside the server (BLS): launched servers get them too, and a pipeline of "
        "that model counts them; the steps of an ensemble are read from its config.pbtxt in a model repository of these settings",
    )
    servers: dict[Name, ServerSettings] = Field(
        default={}, description="running Triton servers to adopt, by names of your choice; they are scaled in place and never stopped"
    )
    launch: LaunchSettings | None = Field(default=None, description="how new servers are launched; without it only instances are scaled")
    envoy: EnvoySettings = Field(default=EnvoySettings(), description="the proxy that clients connect to")
    prices: PriceSettings = Field(
        default=PriceSettings(), description="prices of capacity and of changes, in one unit of your choice; only ratios matter"
    )
    policy: PolicySettings = Field(default=PolicySettings(), description="the scaling policy and its parameters")
    policies: dict[Name, PolicySettings] = Field(
        default={},
        description="values of `policy` keys for one policy, by its name, in simulations and comparisons; "
        "its other values are those of `policy`",
    )
    planning: PlanningSettings = Field(default=PlanningSettings(), description="the rules of plans")
    mode: Annotated[Mode, Field(strict=False)] = Field(
        default=Mode.ACTIVE, description="active: Themis carries out its decisions; advisory: it only shows them"
    )
    state_directory: FilePath = Field(
        default=Path(DEFAULT_STATE_DIRECTORY), description="folder of the journal, the logs and Envoy's files"
    )
    status: StatusSettings = Field(default=StatusSettings(), description="the status API and the daemon's own metrics")
    standby: StandbySettings = Field(default=StandbySettings(), description="a second sidecar, which takes over")
    retention: RetentionSettings = Field(default=RetentionSettings(), description="how much of its own records the sidecar keeps")
    allow_stale_profiles: bool = Field(
        default=False, description="start even if the model, its configuration or the device changed after a profile was measured"
    )

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        names = [policy.value for policy in PolicyName]
        for name, section in policies.items():
            if name not in names:
                raise refusal(f"unknown policy {name}", " or ".join(names), "write one of these policies, or remove it")
            if "name" in section.model_fields_set:
                raise refusal(f"`name` is set in the section of {name}", "the other keys of `policy`", "remove `name`")
        return policies
