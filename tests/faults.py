"""The table of faults: what each did before, what it does now, and the tests that show it.

`scripts/faults` runs the tests and prints the table; `--write` also leaves it in docs/faults.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import yaml

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "tests" / "faults.yaml", ROOT / "docs" / "faults.md"
HEADER = """# Faults, overload and intruders

Each row was measured on the real Triton and Envoy before anything was built against it: requests that failed, of all that were sent.
`scripts/faults` runs the tests of all rows in about five minutes and prints this table; with `--write` it writes this page.

| # | what was done | before | now | shown by, below `tests/` |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault; `tests` as FILE::NAME, below this folder."""

    case: str
    before: str
    now: str
    tests: tuple[str, ...]

    def cells(self, number: int) -> str:
        """The row of the page."""
        tests = ", ".join(f"[{name.replace('_', ' ').removeprefix('test ')}](../tests/{file})" for file, name in map(split, self.tests))
        return f"| {number} | {self.case} | {self.before} | {self.now} | {tests} |"


def split(test: str) -> tuple[str, str]:
    """The file and the name of a test."""
    file, _, name = test.partition("::")
    return file, name


def read_rows() -> tuple[Row, ...]:
    """All rows, in order."""
    return tuple(Row(**{**row, "tests": tuple(row["tests"])}) for row in yaml.safe_load(ROWS.read_text(encoding="utf-8")))


def page(rows: Sequence[Row], footer: str = "") -> str:
    """The page; `footer`: when it was run, and with what result."""
    return HEADER + "\n".join(row.cells(number) for number, row in enumerate(rows, 1)) + "\n" + footer


def run(rows: Sequence[Row]) -> dict[str, str]:
    """Run the tests; for each its worst outcome over its parameters."""
    files = sorted({split(test)[0] for row in rows for test in row.tests})
    names = {split(test)[1] for row in rows for test in row.tests}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", " or ".join(sorted(names))]
        subprocess.run([*command, *(f"tests/{file}" for file in files)], cwd=ROOT, check=False)
        return outcomes(ET.parse(report).getroot())  # noqa: S314 - pytest wrote it just now


def outcomes(report: ET.Element) -> dict[str, str]:
    """By FILE::NAME the worst outcome of the test's parameters."""
    worst: dict[str, str] = {}
    for case in report.iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").split(".Test")[0]
        test = f"{module.replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
        worst[test] = min(worst.get(test, "passed"), outcome, key=("error", "failure", "skipped", "passed").index)
    return worst


def result_of(row: Row, worst: Mapping[str, str]) -> str:
    """`passed`, or how many of the row's tests did not pass."""
    failed = [test for test in row.tests if worst.get(test, "not run") != "passed"]
    return "passed" if not failed else f"{len(failed)} of {len(row.tests)} not passed: {', '.join(failed)}"


def main() -> int:
    """Run, print, and write if asked to; 1 when a test did not pass."""
    parser = argparse.ArgumentParser(description="Run the tests of all faults and print the table.")
    parser.add_argument("--write", action="store_true", help="leave the table in docs/faults.md")
    rows, write = read_rows(), parser.parse_args().write
    worst = run(rows)
    results = [result_of(row, worst) for row in rows]
    for number, (row, result) in enumerate(zip(rows, results, strict=True), 1):
        print(f"{number:2} {row.case}\n   before: {row.before}\n   now: {row.now}\n   {result}")  # noqa: T201
    counts = Counter(result == "passed" for result in results)
    summary = f"{counts[True]} of {len(rows)} rows passed ({sum(len(row.tests) for row in rows)} tests)"
    print(summary)  # noqa: T201
    if write:
        day = datetime.now(UTC).date().isoformat()
        PAGE.write_text(page(rows, f"\nLast run on {day}: {summary}.\n"), encoding="utf-8")
    return int(counts[False] > 0)


if __name__ == "__main__":
    sys.exit(main())
