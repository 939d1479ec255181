"""The section `retention` of the settings file."""

from __future__ import annotations

from pydantic import Field

from themis_triton.core.retention import RetentionConfig
from themis_triton.settings.kinds import Section, Size

_DEFAULT = RetentionConfig()
MIN_BYTES = 2**20


class RetentionSettings(Section):
    """How much of its own records a sidecar keeps in `state_directory`."""

    max_journal: Size = Field(
        default=_DEFAULT.journal_bytes,
        validate_default=True,
        ge=MIN_BYTES,
        description="maximum size of the journal; the oldest ticks are removed",
    )
    max_recording: Size = Field(
        default=_DEFAULT.recording_bytes,
        validate_default=True,
        ge=0,
        description="size in the journal of what `themis replay` reads, the oldest is removed; 0: nothing is recorded",
    )
    max_log: Size = Field(
        default=_DEFAULT.log_bytes,
        validate_default=True,
        ge=MIN_BYTES,
        description="maximum size of the log of a launched server or Envoy; then it begins anew, beside a copy of its end (`NAME.log.1`)",
    )
    max_old_logs: int = Field(
        default=_DEFAULT.max_old_logs, ge=0, description="maximum number of logs of servers that are gone; the oldest are removed"
    )
    report_cpu_s: float = Field(
        default=_DEFAULT.report_cpu_s,
        ge=0.0,
        allow_inf_nan=False,
        description="processor seconds at the lowest priority for the report of each day; if they do not suffice, it compares fewer hours; "
        "0: none is made",
    )

    def to_core(self) -> RetentionConfig:
        """The section as the sidecar's configuration."""
        sizes = int(self.max_journal), int(self.max_recording), int(self.max_log)
        return RetentionConfig(*sizes, self.max_old_logs, self.report_cpu_s)
