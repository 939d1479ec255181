from __future__ import annotations

from pathlib import Path

from themis_triton.settings.reference import reference_markdown

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table_of_settings_as_it_is() -> None:
    assert reference_markdown() in README.read_text(), "run scripts/readme"
