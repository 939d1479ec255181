"""Where the journal of a state directory is."""

from __future__ import annotations

from pathlib import Path

JOURNAL_FILE = "journal.sqlite"


def journal_path(state_directory: Path) -> Path:
    """The journal's file in a state directory."""
    return state_directory / JOURNAL_FILE
