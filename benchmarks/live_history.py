"""The journal of a sidecar that has run for days: the Twitter stream's arrivals before a second of it, by this machine's clock."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
from policy_cases import arrivals_between

from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.paths import journal_path
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.recurring import DAY_S
from themis_triton.estimate.minutes import MINUTE_S

SIDECAR_START_S = 4.0
"""About so long after the journal is written, the sidecar ticks."""
FLUSH_EVERY = 500
"""A journal's writer drops rows of which too many wait."""


def write_history(state_directory: Path, pipeline: str, until_s: int, days: int, settle_s: float) -> None:
    """Write `days` of minutes; a load that begins `settle_s` after the sidecar's first tick goes on at the stream's second `until_s`.

    OSError if the journal cannot be written.
    """
    now_s = time.time()
    ahead_s = round(now_s + SIDECAR_START_S + settle_s) - until_s
    end_s = int(now_s) // MINUTE_S * MINUTE_S
    start_s = end_s - days * DAY_S
    counts = np.nan_to_num(arrivals_between(start_s - ahead_s, end_s - ahead_s, pipeline))
    state_directory.mkdir(parents=True, exist_ok=True)
    with closing(Journal(journal_path(state_directory))) as journal:
        for minute, arrivals in enumerate(counts.reshape(-1, MINUTE_S).tolist()):
            at_s = start_s + minute * MINUTE_S
            traffic = TrafficMinute(pipeline, at_s, tuple(arrivals), sum(arrivals), 0.0)
            journal.record_minute(UsageMinute(at_s, MINUTE_S, MINUTE_S, MINUTE_S, 0.0), [traffic])
            if (minute % FLUSH_EVERY == 0 or at_s + MINUTE_S == end_s) and not journal.flush():
                raise OSError(f"{journal_path(state_directory)} could not be written")
