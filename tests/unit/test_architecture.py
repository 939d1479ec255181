"""The picture of the architecture is drawn from the imports as they are."""

from __future__ import annotations

import subprocess
import sys

from tests.documents import ROOT


def test_the_picture_of_the_architecture_is_current() -> None:
    drawn = subprocess.run([sys.executable, ROOT / "scripts" / "architecture.py", "--print"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn.stdout, "run scripts/reference"
