"""The generated pages of docs/reference are current."""

from __future__ import annotations

from pathlib import Path

from themis_triton.settings.reference import reference_page, reference_rows

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_settings_reference_is_current() -> None:
    page = reference_page()
    assert (REFERENCE / "settings.md").read_text(encoding="utf-8") == page, "run scripts/reference"
    assert all(f"| `{row.key}` |" in page for row in reference_rows())
