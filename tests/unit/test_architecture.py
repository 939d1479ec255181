"""The picture of the architecture is drawn from the imports as they are."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.documents import ROOT


def test_the_picture_of_the_architecture_is_current() -> None:
    drawn = subprocess.run([sys.executable, ROOT / "scripts" / "architecture.py", "--print"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn.stdout, "run scripts/reference"


def test_policy_solver_and_page_have_no_word_of_an_engine_that_places_servers() -> None:
    engine = re.compile(r"kubernetes|\bk8s\b|\bkeda\b|slurm|\bray\b|\bpods?\b", re.IGNORECASE)
    packages = ("act", "decide", "estimate", "forecast", "page", "plan", "sim", "solver")
    files = [file for name in packages for file in (ROOT / "themis_triton" / name).rglob("*") if file.suffix in {".py", ".js", ".html"}]
    assert files
    named = [str(file) for file in files if "vendor" not in file.parts and engine.search(file.read_text(encoding="utf-8"))]
    assert named == []
