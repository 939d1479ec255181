"""The systemd units that ship: valid, and with little power."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy").glob("*.service"))
MAX_EXPOSURE = 3.5
"""Of 10, as `systemd-analyze security` counts it. A service without any rule has 9.6."""
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_valid_and_grants_little(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"(?m)^(Exec\w+)=(?:.*\\\n)*.*$", r"\1=/bin/true", unit.read_text()))
    for command in (["verify"], ["security", "--offline=true"]):
        done = subprocess.run([str(ANALYZE), *command, str(copy)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) <= MAX_EXPOSURE
