from __future__ import annotations

from themis_triton.adapters.envoy.binary import failure_reason

CAUSE = "[2026-01-01 00:00:00.000][7][critical][assert] assert failure: inotify_fd_ >= 0. Details: Consider increasing max_user_instances"
BACKTRACE = "\n".join(f"[2026-01-01 00:00:00.000][7][critical][backtrace] #{number}: [0x55]" for number in range(20))


def test_the_first_critical_line_is_the_reason_and_not_the_backtrace_behind_it() -> None:
    assert failure_reason(f"[2026-01-01 00:00:00.000][7][warning][main] careful\n{CAUSE}\n{BACKTRACE}\n") == CAUSE


def test_without_a_critical_line_the_last_lines_are_the_reason() -> None:
    lines = [f"line {number}" for number in range(40)]
    assert failure_reason("\n".join(lines)).splitlines() == lines[-15:]
    assert failure_reason("") == ""
