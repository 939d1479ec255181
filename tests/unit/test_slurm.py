"""Servers as Slurm jobs without a Slurm: settings, what is asked of its programs, and what their output says."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.stand_in import write_program
from themis_triton.adapters.launchers import discover_all, stop_all
from themis_triton.adapters.slurm import job as job_program
from themis_triton.adapters.slurm.check import check_jobs
from themis_triton.adapters.slurm.jobs import job_name, parse_jobs
from themis_triton.adapters.slurm.launcher import SlurmLauncher
from themis_triton.adapters.slurm.listing import JobList
from themis_triton.adapters.slurm.nodes import parse_nodes
from themis_triton.adapters.slurm.programs import SlurmError, clean_environment, run_program
from themis_triton.core.config import DeviceSlot, SlurmLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, LaunchFailedError, ServerError, SettingsError
from themis_triton.core.fleet import ModelState
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

SETTINGS = """\
launch:
  kind: slurm
  model_repository: models
  slurm:
    directory: shared
    jobs: 2
    memory: 20GiB
    partition: gpu
    gres: gpu:a100:1
    cpus: 4
    host_memory: 16GiB
    time_limit_min: 600
    options: [--exclusive, --licenses=triton]
models:
  detector: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}
pipelines:
  video: {stages: [detector], slo_ms: 300}
"""
NAME = job_name("themis", "job-1-d1", "0a1b")
MODELS = {"video-detector": ModelState(1, 8)}


def loaded(folder: Path, change: tuple[str, str] = ("", "")) -> SlurmLaunchConfig:
    (folder / "models" / "detector").mkdir(parents=True)
    assert change[0] in SETTINGS
    path = folder / "themis.yaml"
    path.write_text(SETTINGS.replace(*change), encoding="utf-8")
    launch = load_settings(path).launch
    assert isinstance(launch, SlurmLaunchConfig)
    return launch


def test_each_job_is_a_slot_with_a_device_of_its_own(tmp_path: Path) -> None:
    launch = loaded(tmp_path)
    assert [(slot.name, slot.device, slot.memory_bytes) for slot in launch.slots] == [(f"job-{n}", f"job:{n}", 20 * 2**30) for n in (1, 2)]
    assert (launch.directory, launch.host_memory_bytes, launch.runs_here) == (tmp_path / "shared", 16 * 2**30, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  kind: slurm\n", ""), r"launch: `slurm` is set with kind: local: expected `slots` alone\. Fix: .*set `kind: slurm`"),
        (("  slurm:\n", "  reach: [gpu:0]\n  slurm:\n"), r"`reach` is set with kind: slurm.*Fix: remove `reach`; the cluster gives"),
        (("  model_repository: models\n", ""), "`model_repository` is missing with kind: slurm"),
        (("--exclusive", r'"--exclusive\n--wrap"'), r"options\[0\](?s:.)*expected long options of sbatch in one word"),
        (("--exclusive", "-x"), "Fix: write --NAME or --NAME=VALUE"),
        (("--exclusive", "--job-n=mine"), "--job-n is no option here: Themis sets it.*Fix: remove --job-n"),
        (("--exclusive", "--time=9"), "it has a key, launch.slurm.time_limit_min"),
        (("gpu:a100:1", "gpu:1 --wrap=x"), r"gres: gpu:1 --wrap=x is invalid: expected one word"),
        (("directory: shared", "directory: shared/%j"), "expected a path without '%'"),
        (
            ("  slurm:\n", "  binary: t\n  slurm:\n    container: t.sif\n"),
            "both `slurm.container` and a `tritonserver` outside of it",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        loaded(tmp_path, change)
    assert "themis.yaml:" in str(refused.value)


def test_what_squeue_says_of_the_sidecars_jobs() -> None:
    lines = [
        f"7|PENDING||10:00:00|{NAME}|Resources",
        f"8|PENDING||1:00|{NAME}|PartitionTimeLimit",
        f"9|PENDING||UNLIMITED|{NAME}|ReqNodeNotAvail, UnavailableNodes:node[1-2]",
        f"10|RUNNING|gpu-3|1-02:03:04|{NAME}|None",
        f"11|COMPLETING|gpu-3|0:10|{NAME}|None",
        f"12|NODE_FAIL|gpu-3|0:10|{NAME}|None",
        f"13|TIMEOUT|gpu-3|0:00|{NAME}|TimeLimit",
        f"14|RUNNING|gpu-3|0:00|{job_name('other', 'job-1', '0a')}|None",
        "15|RUNNING|gpu-3|0:00|interactive|None",
        "slurm_load_jobs warning",
    ]
    jobs = {int(job.number): job for job in parse_jobs("\n".join(lines), "themis").values()}
    assert list(jobs) == [*range(7, 14)]
    assert {number: (job.is_waiting, job.is_over, job.is_gone, job.waits_forever) for number, job in jobs.items()} == {
        7: (True, False, False, False),
        8: (True, False, False, True),
        9: (True, False, False, False),
        10: (False, False, False, False),
        11: (False, True, False, False),
        12: (False, True, True, False),
        13: (False, True, True, False),
    }
    assert (jobs[10].server, jobs[10].incarnation, jobs[10].left_s) == ("job-1-d1", "10/0a1b", 93784.0)
    assert (jobs[7].left_s, jobs[9].left_s) == (36000.0, None)
    assert jobs[8].waits_for.startswith("job 8 waits for PartitionTimeLimit. Fix: lower launch.slurm.time_limit_min")
    assert "UnavailableNodes:node[1-2]" in jobs[9].waits_for
    assert [jobs[number].end for number in (12, 13)] == ["job 12: NODE_FAIL on gpu-3", "job 13: TIMEOUT TimeLimit on gpu-3"]


def test_nodes_that_answer_no_more_are_lost() -> None:
    states = ("idle", "mixed*", "down", "drained", "allocated", "fail", "unknown*")
    nodes = parse_nodes("\n".join(f"n{at}|10.0.0.{at}|{state}|gpu|gpu:a100:4(S:0-1)|fast" for at, state in enumerate(states)))
    assert [node.is_lost for node in nodes] == [False, True, True, False, False, True, True]
    assert nodes[0].address == "10.0.0.0"


def test_the_jobs_program_runs_on_the_pythons_of_old_systems() -> None:
    assert ast.parse(Path(job_program.__file__).read_text(encoding="utf-8"), feature_version=(3, 6)).body


PROGRAM = """\
#!{python}
import json, os, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
folder = os.path.dirname(sys.argv[0])
name = os.path.basename(sys.argv[0])
out, code = open(os.path.join(folder, name + ".answer")).read().rsplit("\\n", 1)
sys.stdout.write(out)
if int(code): sys.stderr.write("slurm_load_jobs error: Unable to contact slurm controller\\n")
sys.exit(int(code))
"""


class Programs:
    """Stand-ins for Slurm's programs on PATH, which note their arguments and answer what they were given."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._calls = folder, folder / "calls"
        folder.mkdir()
        for name in ("sbatch", "squeue", "scancel", "sinfo"):
            file = folder / name
            file.write_text(PROGRAM.format(python="/usr/bin/env python3", calls=str(self._calls)), encoding="utf-8")
            file.chmod(0o700)
            self.answer(name, "")
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answer(self, name: str, text: str, code: int = 0) -> None:
        (self._folder / f"{name}.answer").write_text(f"{text}\n{code}", encoding="utf-8")

    def calls(self, name: str) -> list[list[str]]:
        lines = self._calls.read_text(encoding="utf-8").splitlines() if self._calls.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == name]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path / "bin", monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> SlurmLaunchConfig:
    return SlurmLaunchConfig(
        (DeviceSlot("job-1", "job:1"),),
        shipped("model_repository"),
        directory=tmp_path / "$(touch x)",
        gres="gpu:1",
        options=("--comment-free; touch y",),
        poll_s=30.0,
        place_timeout_s=0.3,
        binary=write_program(tmp_path / "tritonserver"),
    )


def private(order: Path, key: str) -> bool:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (order, order.parent)]
    return modes == [0o600, 0o700] and key in order.read_text(encoding="utf-8")


def test_a_launch_asks_for_a_job_by_words_of_its_own_and_shows_its_key_to_this_user_alone(
    tmp_path: Path, programs: Programs, config: SlurmLaunchConfig
) -> None:
    programs.answer("sbatch", "41;cluster")

    async def work() -> None:
        launcher = SlurmLauncher(config, tmp_path / "state")
        try:
            server = await launcher.launch("one", "job-1", MODELS)
            (asked,) = programs.calls("sbatch")
            key = server.model_control_key
            assert key
            assert server.incarnation is not None
            assert server.incarnation.startswith("41/")
            assert not any(key in word for word in asked)
            assert {"--gres=gpu:1", "--no-requeue", f"--output={config.directory}/logs/one.log", *config.options} <= set(asked)
            assert not any(word.startswith(("--time", "--mem", "--partition", "--account")) for word in asked)
            assert private(Path(asked[-1]), key)
            programs.answer("squeue", f"41|PENDING||UNLIMITED|{asked[1].partition('=')[2]}|QOSMaxJobsPerUserLimit")
            await launcher._jobs.refresh()
            with pytest.raises(LaunchFailedError, match=r"found no place within .*place_timeout_s = 0\.3 s: job 41 waits for QOSMaxJobs.*"):
                await launcher.wait_ready(server)
        finally:
            await launcher.close()
        assert [each.name for each in await discover_all(tmp_path / "state")] == ["one"]

    asyncio.run(work())


def test_what_slurm_does_not_answer_is_given_up_by_no_one(tmp_path: Path, programs: Programs, config: SlurmLaunchConfig) -> None:
    programs.answer("sbatch", "41")

    async def work() -> None:
        launcher = SlurmLauncher(config, tmp_path / "state")
        try:
            server = await launcher.launch("one", "job-1", MODELS)
            programs.answer("squeue", "", 1)
            assert await launcher.is_alive(server)
            for call in (launcher.discover, launcher.stop_all, lambda: launcher.stop(server)):
                with pytest.raises(ServerError, match="squeue failed with exit code 1: slurm_load_jobs error: Unable to contact"):
                    await call()
            programs.answer("sbatch", "", 1)
            with pytest.raises(LaunchFailedError, match="server two: sbatch failed"):
                await launcher.launch("two", "job-1", MODELS)
            assert not launcher._views.files("two").directory.exists()
            programs.answer("squeue", "")
            await launcher._jobs.refresh()
            assert not await launcher.is_alive(server)
        finally:
            await launcher.close()
        assert await stop_all(tmp_path / "state") == ()

    asyncio.run(work())


def test_a_job_whose_answer_was_lost_is_found_by_its_name(programs: Programs) -> None:
    async def work() -> None:
        jobs = JobList("themis", 30.0)
        try:
            await jobs.jobs()
            programs.answer("sbatch", "", 1)
            programs.answer("squeue", f"52|RUNNING|n1|UNLIMITED|{NAME}|None")
            assert (await jobs.submit(NAME, ["sbatch", "job"])).number == "52"
            with pytest.raises(SlurmError, match="sbatch failed"):
                await jobs.submit(job_name("themis", "other", "ff"), ["sbatch", "job"])
        finally:
            await jobs.close()

    asyncio.run(work())


def test_the_log_tells_of_ends_once_and_before_a_time_limit(programs: Programs) -> None:
    async def work() -> None:
        jobs = JobList("themis", 30.0)
        for state, left in (
            ("PENDING", "9:00"),
            ("RUNNING", "10:01"),
            ("RUNNING", "9:59"),
            ("RUNNING", "9:57"),
            ("TIMEOUT", "0:00"),
            ("TIMEOUT", "0:00"),
        ):
            programs.answer("squeue", f"52|{state}|n1|{left}|{NAME}|None")
            await jobs.refresh()

    with capture_logs() as logs:
        asyncio.run(work())
    assert [(each["event"], each["server"]) for each in logs] == [("job_ends_soon", "job-1-d1"), ("job_ended", "job-1-d1")]
    assert (logs[0]["left_s"], logs[1]["end"]) == (599.0, "job 52: TIMEOUT on n1")


def test_programs_have_a_deadline_and_none_of_the_users_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HOME": "/root"}
    assert clean_environment({**kept, "SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SQUEUE_FORMAT": "%i"}) == kept
    with pytest.raises(SlurmError, match=r"sleep did not end within 0\.05 s"):
        asyncio.run(run_program("sleep", "30", timeout_s=0.05))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentCheckError, match=r"squeue cannot be started.*Fix: install Slurm's client programs"):
        asyncio.run(run_program("squeue"))


def test_validate_names_what_the_cluster_lacks(programs: Programs, config: SlurmLaunchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.answer("sinfo", "n1|n1|idle|gpu|gpu:a100:4(S:0-1),nic:1|fast\nn2|n2|down*|cpu|(null)|(null)")

    def found(**changes: str) -> list[tuple[int, str]]:
        return [(each.exit_code, each.found) for each in asyncio.run(check_jobs(replace(config, **changes)))]  # type: ignore[arg-type]

    assert [code for code, _ in found()] == [0, 0, 0]
    assert found(partition="big")[0] == (3, "there is no partition big")
    assert found(gres="fpga:1")[0] == (3, "no node has fpga:1")
    assert found(partition="cpu", gres="")[0][0] == 4
    programs.answer("sinfo", "", 1)
    assert found()[0][0] == 4
    monkeypatch.setenv("PATH", "/nowhere")
    assert found()[0] == (3, "sbatch, squeue, scancel, sinfo not found on PATH")
