"""What the state directory remembers of a cluster, so that its servers are found and stopped without settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def remember(file: Path, values: Mapping[str, Any]) -> None:
    """Write the values, where they are others than before; a path is written as text."""
    text = json.dumps(values, indent=1, default=str)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def remembered(file: Path) -> dict[str, Any] | None:
    """The values; None where nothing, or no such values, were written."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
