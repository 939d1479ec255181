"""Mutation tests of the stages: how many changed lines of decide, plan, estimate and act the unit tests notice.

`python benchmarks/mutation.py` takes about half an hour on two cores, `python benchmarks/mutation.py plan act` less; it needs the extra
`mutation`. Writes results/mutation.json with the score and the surviving mutants of each package, and keeps those of the others.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, write_result

ROOT = Path(__file__).parents[1]
PACKAGES = ("estimate", "decide", "plan", "act")
SETTINGS = """
[tool.mutmut]
source_paths = ["themis_triton"]
only_mutate = ["themis_triton/{package}/*.py"]
also_copy = ["model_repository", "config", "docs", "README.md", "scripts", "benchmarks", "examples"]
pytest_add_cli_args = ["-q", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
"""
TESTS = {
    "estimate": ("estimate", "drift", "series", "latency", "work", "open_calls", "tick", "decide"),
    "decide": (
        "decide",
        "decide_separate",
        "decide_places",
        "views",
        "allocation",
        "correction",
        "demand",
        "probed_operation_guard",
        "one_shot_growth",
        "open_calls",
        "tick",
    ),
    "plan": ("steps", "decide_places", "executor", "tick", "relaunch", "plan_command"),
    "act": ("executor", "open_calls", "tick", "relaunch"),
}


def main() -> None:
    """Run the named packages in a copy of the tracked files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), help="Of estimate, decide, plan, act. Default: all.")
    path = RESULTS / "mutation.json"
    packages: dict[str, Any] = json.loads(path.read_text())["packages"] if path.exists() else {}
    for package in parser.parse_args().packages:
        packages[package] = mutated(package)
        print(package, {key: value for key, value in packages[package].items() if key != "survivors"})
    killed, total = (sum(each[key] for each in packages.values()) for key in ("killed", "mutants"))
    print(write_result("mutation", {"killed_percent": round(100.0 * killed / total, 1), "packages": packages}))


def mutated(package: str) -> dict[str, Any]:
    """Score and survivors of one package."""
    with tempfile.TemporaryDirectory(prefix="themis-mutation-") as folder:
        for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        tests = [f"tests/unit/test_{name}.py" for name in TESTS[package]]
        with (Path(folder) / "pyproject.toml").open("a") as settings:
            settings.write(SETTINGS.format(package=package, tests=json.dumps(tests)))
        mutmut = [str(Path(sys.executable).parent / "mutmut")]
        run = subprocess.run([*mutmut, "run", "--max-children", "2"], cwd=folder, capture_output=True, text=True, check=False)
        results = subprocess.run([*mutmut, "results", "--all", "true"], cwd=folder, capture_output=True, text=True, check=True).stdout
    outcomes = dict(re.findall(r"^\s*(\S+): (.+)$", results, re.MULTILINE))
    if not outcomes:
        raise SystemExit(f"no mutant was tested:\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}")
    survivors = sorted(name for name, outcome in outcomes.items() if outcome in {"survived", "no tests"})
    killed = sum(outcome in {"killed", "timeout"} for outcome in outcomes.values())
    return {"mutants": len(outcomes), "killed": killed, "killed_percent": round(100.0 * killed / len(outcomes), 1), "survivors": survivors}


if __name__ == "__main__":
    main()
