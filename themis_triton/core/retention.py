"""How much of its own records a sidecar keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """Bounds of the journal, of the recording in it, of each log of a server or Envoy, and on the logs of servers that are gone.

    `report_cpu_s`: the processor time that each day's report may take; 0: none is made.
    """

    journal_bytes: int = 64 * 2**20
    recording_bytes: int = 16 * 2**20
    log_bytes: int = 16 * 2**20
    max_old_logs: int = 50
    report_cpu_s: float = 300.0
