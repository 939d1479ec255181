"""Everything compiled is known, is compiled before it is needed, and nothing happens at import."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

import themis_triton
from tests.unit.samples import CLASSIFIER, config
from themis_triton import compilation
from themis_triton.compilation import ENTRIES, CompileProgress, compile_kernels
from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason
from themis_triton.core.errors import SolverError
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import QueueingModel
from themis_triton.jit import SOURCES, Group, cache_directory, marker
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.world import SimWorld
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet
from themis_triton.solver.migration import solve_migration
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.slot_allocation import PoolMember, solve_pool
from themis_triton.solver.solve import evaluate, fewest_servers, largest_demand, solve_joint, solve_vertical
from themis_triton.solver.surface import contention_surface

ROOT = Path(themis_triton.__file__).parent


def dispatchers() -> dict[str, Any]:
    """Every compiled function of the package, by where it is defined."""
    functions: dict[str, Any] = {}
    for package in ("estimate", "solver", "sim"):
        for module in pkgutil.iter_modules([str(ROOT / package)]):
            for value in vars(importlib.import_module(f"themis_triton.{package}.{module.name}")).values():
                if isinstance(value, Dispatcher):
                    functions[f"{value.py_func.__module__}.{value.py_func.__name__}"] = value
    return functions


def signatures() -> dict[str, int]:
    return {name: len(function.signatures) for name, function in dispatchers().items()}


def test_a_python_caller_calls_only_entries_that_the_registry_knows() -> None:
    known = {f"{entry.function.__module__}.{entry.function.__name__}" for entry in ENTRIES}
    names = {name.rpartition(".")[2] for name in dispatchers()}
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from tests.unit.test_compilation import scenario, signatures, ticks\n"
        "from themis_triton.compilation import use_kernel_cache, ENTRIES\n"
        "use_kernel_cache()\n"
        "for entry in ENTRIES: entry.compile()\n"
        "before = signatures(); scenario(); ticks(); after = signatures()\n"
        "print(json.dumps([before, after]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT.parent)], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert known <= set(before)
    assert len(names) > len(known)
    assert after == before  # no entry got another signature, and no inner kernel was called from Python
    assert all(before[name] == 1 for name in known)


def scenario() -> None:
    """What ticks of co-located and of separate chains reach: surge, migration, shortage of slots, infeasible demand, uneven prices."""
    stages = tuple(StageProblem(name, contention_surface(4, 8, 4, 20, 8, 12), 1, 4, 8) for name in ("one", "two"))
    uneven = (replace(stages[0], instance_price=3.0), stages[1])
    for placement in Placement:
        for queueing in QueueingModel:
            for chain in (stages, uneven):
                problem = ChainProblem(chain, 300.0, 30.0, placement=placement, queueing=queueing, headroom_sigmas=1.0)
                servers = 1 if placement is Placement.COLOCATED else [1, 1]
                for rate_rps in (0.0, 30.0, 100_000.0):
                    asked = replace(problem, demand_rps=rate_rps)
                    solve_joint(asked)
                    fewest_servers(asked)
                    solve_vertical(asked, servers, min_instances=[1, 1])
                    largest_demand(asked, None)
                    solve_pool([PoolMember(asked), PoolMember(replace(asked, slo_ms=0.5))], 2)
                evaluate(problem, servers, [1, 1], [9, 1])
                if placement is Placement.COLOCATED:
                    now = [ServerAssignment("a", (ModelState(1, 8),) * 2), ServerAssignment("b", (ModelState(2, 4), ModelState(1, 8)))]
                    evaluate_fleet(problem, now)
                    solve_migration(replace(problem, demand_rps=80.0), now)


def ticks() -> None:
    """Real ticks of two pipelines with a wrong profile: surge, launches, retirement, migration, infeasible demand and drift."""
    base = config(slots=3, burst_headroom_factor=1.5)
    first = base.pipelines[0]
    settings = replace(base, pipelines=(first, replace(first, name="second", stages=(CLASSIFIER,), weight=2.0)))
    trace = load_trace(TraceOptions("surge", duration_s=60))
    loads = {"video": arrivals(trace, 1), "second": arrivals(trace, 2)}
    result = simulate(settings, loads, trace.duration_s + 20.0, SimOptions(world=SimWorld(service_factor=1.4)))
    assert {Reason.SURGE, Reason.SCALE_OUT, Reason.SCALE_IN, Reason.SETTLE, Reason.INFEASIBLE} <= {
        record.decision.reason for record in result.ticks
    }
    assert any(record.estimate.drift_events for record in result.ticks)
    assert any(record.decision.evidence and record.decision.evidence[0].holds_after_s for record in result.ticks)


def test_the_cache_depends_on_every_file_that_holds_a_kernel() -> None:
    files = {Path(function.py_func.__code__.co_filename) for function in dispatchers().values()}
    assert files <= {ROOT / source for source in SOURCES}


def test_importing_the_package_changes_neither_numba_nor_the_file_system(tmp_path: Path) -> None:
    script = (
        "import numba; before = dict(vars(numba.config))\n"
        "import themis_triton.compilation, themis_triton.tick, themis_triton.sim.run, themis_triton.planning\n"
        "assert {k: v for k, v in vars(numba.config).items()} == before\n"
    )
    # A copy of the package, because other tests that run at the same time compile beside the original.
    package, home = tmp_path / "package", tmp_path / "home"
    shutil.copytree(ROOT, package / "themis_triton", ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    before = sorted(package.rglob("*"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "NUMBA_CACHE_DIR": str(home / "cache"),
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=home, check=True)
    assert list(home.iterdir()) == []
    assert sorted(package.rglob("*")) == before


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that stands for an installed package."""
    folder = tmp_path / "package"
    for source in SOURCES:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).write_text("# a source\n")
    return folder


def test_the_cache_is_where_the_environment_says_then_beside_the_package_then_with_the_user(tmp_path: Path, package: Path) -> None:
    home = {"HOME": str(tmp_path / "home")}
    chosen = cache_directory({**home, "NUMBA_CACHE_DIR": str(tmp_path / "given")}, package)
    assert chosen is not None
    assert chosen.parent == tmp_path / "given"
    beside = cache_directory(home, package)
    assert beside is not None
    assert beside.parent == package / "__pycache__" / "kernels"


def test_an_unwritable_package_falls_back_to_the_users_cache_and_then_to_none(tmp_path: Path, package: Path) -> None:
    (package / "__pycache__").write_text("a file where the folder would be: not even root can write below it")
    user = cache_directory({"HOME": str(tmp_path / "home")}, package)
    assert user is not None
    assert user.parent == tmp_path / "home" / ".cache" / "themis-triton" / "kernels"
    (tmp_path / "file").write_text("")
    assert cache_directory({"HOME": str(tmp_path / "file")}, package) is None
    assert cache_directory({"NUMBA_CACHE_DIR": str(tmp_path / "file" / "below")}, package) is None


def test_a_service_without_a_home_has_the_cache_directory_of_its_unit_or_else_its_state_directory(tmp_path: Path, package: Path) -> None:
    (package / "__pycache__").write_text("a file where the folder would be: not even root can write below it")
    (tmp_path / "file").write_text("")
    homeless = {"HOME": str(tmp_path / "file")}
    several = f"{tmp_path / 'unit'}:{tmp_path / 'other'}"
    unit = cache_directory({**homeless, "CACHE_DIRECTORY": several}, package, tmp_path / "state")
    assert unit is not None
    assert unit.parent == tmp_path / "unit" / "kernels"
    state = cache_directory(homeless, package, tmp_path / "state")
    assert state is not None
    assert state.parent == tmp_path / "state"


def test_a_changed_source_gets_another_directory_and_the_old_one_is_removed(tmp_path: Path, package: Path) -> None:
    first = cache_directory({"HOME": str(tmp_path)}, package)
    (package / "jit.py").write_text("# another source\n")
    second = cache_directory({"HOME": str(tmp_path)}, package)
    assert first is not None
    assert second is not None
    assert first != second
    assert not first.exists()
    assert second.exists()


SMALL = tuple(entry for entry in ENTRIES if entry.name == "solver.slot_kernels.split_slots")


def test_what_is_missing_is_compiled_with_progress_and_then_silently_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "ENTRIES", SMALL)
    steps: list[CompileProgress] = []
    result = asyncio.run(compile_kernels((Group.TICK,), steps.append))
    assert (result.entries, result.compiled) == (1, 1)
    assert [(step.done, step.total) for step in steps] == [(0, 1), (1, 1)]
    assert result.directory is not None
    assert marker(result.directory, Group.TICK).exists()
    again: list[CompileProgress] = []
    assert asyncio.run(compile_kernels((Group.TICK,), again.append)).compiled == 0
    assert again == []


def test_without_a_cache_kernels_compile_for_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "cache_directory", lambda **_: None)
    monkeypatch.setattr(compilation, "ENTRIES", SMALL)
    result = asyncio.run(compile_kernels((Group.TICK,), lambda _: None))
    assert (result.compiled, result.directory) == (1, None)


@pytest.mark.parametrize("kind", ["nbc", "nbi"])
def test_a_damaged_cache_is_made_anew(kind: str, tmp_path: Path) -> None:
    """As a power failure may leave it; each load in a process of its own, as this one has the kernel already."""
    code = (
        "import asyncio; from themis_triton import compilation as c; from themis_triton.jit import Group; "
        f"c.ENTRIES = [e for e in c.ENTRIES if e.name == {SMALL[0].name!r}]; asyncio.run(c.compile_kernels((Group.TICK,), print))"
    )
    for _ in range(2):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=100)
        (file,) = tmp_path.rglob(f"*.{kind}")
        assert file.stat().st_size > 0
        assert list(tmp_path.rglob("tick-*.complete"))
        file.write_bytes(b"")


def test_a_compiler_that_fails_is_an_error_that_names_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "ENTRIES", SMALL)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SolverError, match="split_slots did not compile: the compiler ended with status 1"):
        asyncio.run(compile_kernels((Group.TICK,), lambda _: None))


def test_cancelling_ends_the_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    async def cancelled() -> list[int]:
        started = asyncio.Event()
        task = asyncio.create_task(compile_kernels((Group.TICK,), lambda _: started.set()))
        await started.wait()
        while not (children := _compilers(str(tmp_path))):  # noqa: ASYNC110 - children announce nothing
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        return children

    children = asyncio.run(cancelled())
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def _compilers(argument: str) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument in path.read_text():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def test_solver_and_decide_keep_no_state_in_their_modules() -> None:
    files = [path for package in ("solver", "decide") for path in (ROOT / package).glob("*.py")]
    pattern = re.compile(r"^(@(functools\.)?(lru_)?cache\b|_?[a-z]\w*(: [^=]*)? = (\{|\[|dict\(|list\(|OrderedDict\())", re.MULTILINE)
    assert len(files) > 30
    assert [(path.name, match.group(0)) for path in files for match in pattern.finditer(path.read_text())] == []
