"""The sidecar as a process of its own: what it adopts, changes, survives and leaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.documents import first_advice, walk
from tests.e2e.alerts import fires, samples
from tests.e2e.conftest import SCREENSHOTS, Launch
from tests.e2e.daemon_setup import (
    ADOPTED,
    CLASSIFIER,
    DETECTOR,
    ONE_EACH,
    POLL_S,
    START_TIMEOUT_S,
    TIMEOUT_S,
    Sidecar,
    Status,
    answered,
    beside,
    instances,
    launched,
    traffic,
)
from tests.e2e.terminal import watching
from tests.e2e.test_any_model import calls, chain_ensemble
from tests.e2e.test_servers import double
from themis_triton.adapters.process_end import owned_processes
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.paths import journal_path
from themis_triton.adapters.store.records import unpacked
from themis_triton.core.decoding import decode
from themis_triton.core.errors import EnvironmentCheckError, ServerError, SettingsError
from themis_triton.core.fleet import ProcessId, Server
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e

SURGE_RPS = 60.0
"""More than one server carries inside the SLO, with however many instances."""
ONE_SERVER_RPS = 36.0
"""More than one instance of each model carries, less than one server does."""
ONE_INSTANCE_RPS = 8.0
ANALYSIS = "sentiment-analysis"


def identity(server: Mapping[str, Any]) -> ProcessId:
    return ProcessId(server["process"]["pid"], server["process"]["start_ticks"])


async def adopted_reports_growth(sidecar: Sidecar, *models: str) -> None:
    """Triton itself reports the new counts once the models' queues have been empty; Themis counts the instances that execute before."""
    for _ in range(int(TIMEOUT_S / POLL_S)):
        reported = await sidecar.adopted_models()
        if all(reported[model].instances >= 2 for model in models):
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"the adopted server still reports {reported}\n{sidecar.words()}")


def remembered(rows: list[tuple[Any, ...]]) -> Server:
    return decode(Server, json.loads(rows[0][0]))


def test_adopts_scales_in_place_and_leaves_everything_serving(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path) as sidecar:

        async def scenario() -> None:
            first = await sidecar.start()
            assert [(s["name"], s["launched"], s["phase"]) for s in first["servers"]] == [(ADOPTED, False, "serving")]
            assert (instances(first, DETECTOR), instances(first, CLASSIFIER)) == (1, 1)
            async with traffic(sidecar, SURGE_RPS) as load:
                await sidecar.until("growth in place", lambda s: instances(s, DETECTOR) >= 2 and instances(s, CLASSIFIER) >= 2)
                out = await sidecar.until("second server", lambda s: bool(launched(s, "serving")))
                await adopted_reports_growth(sidecar, DETECTOR, CLASSIFIER)
                assert await sidecar.terminate() == 0
                await load.more(100)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert find_process(identity(launched(out)[0])) is not None

        asyncio.run(scenario())
        assert double(sidecar.adopted, DETECTOR, [3.0]) == [7.0]
        assert double(remembered(sidecar.journal("select server from servers")), CLASSIFIER, [3.0]) == [8.0]


@pytest.mark.parametrize("phase", ["launching", "serving"])
def test_killed_in_a_surge_and_started_again_adopts_what_it_launched(launch: Launch, tmp_path: Path, phase: str) -> None:
    with beside(launch, tmp_path) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, SURGE_RPS) as load:
                started = await sidecar.until(f"{phase} server", lambda s: any(server["process"] for server in launched(s, phase)))
                if phase == "serving":  # it is only paused, and a second sidecar takes over
                    await sidecar.stand_by()
                    started = await sidecar.until("serving server", lambda s: bool(launched(s, "serving")))
                before = launched(started)[0]
                if phase == "serving":
                    sidecar.processes[0].send_signal(signal.SIGSTOP)
                    again = await sidecar.until("a tick of the second sidecar", lambda s: bool(s["tick"]), START_TIMEOUT_S)
                    assert again["pid"] == sidecar.pid
                    assert sidecar.processes[0].poll() == -signal.SIGKILL  # it cannot act when it wakes up
                else:
                    await sidecar.kill()
                    await load.more(60)
                    again = await sidecar.start()
                assert [s["name"] for s in launched(again)] == [before["name"]]
                status = await sidecar.until("re-adopted server", lambda s: bool(launched(s, "serving")))
                after = launched(status, "serving")[0]
                assert identity(after) == identity(before)
                # Killed in a surge, it may have been growing: what was there is there.
                grown = {name: (before["models"][name]["instances"], held["instances"]) for name, held in after["models"].items()}
                assert grown
                assert all(was <= now for was, now in grown.values()), grown
                own_word = await sidecar.adopted_models()
                assert instances(again, DETECTOR) <= own_word[DETECTOR].instances
                count = await answered(after)
                await load.more(100)
                assert await answered(after) > count
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert sidecar.journal("select name from servers") == [(before["name"],)]

        asyncio.run(scenario())


def test_a_server_killed_under_load_is_replaced(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path, slots=("cpu:1", "cpu:2"), policy={"scale_up": {"burst_headroom_factor": 4.0}}) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, SURGE_RPS) as load:
                # Both slots are taken, so that the next launch can only be the replacement.
                full = await sidecar.until("two launched servers", lambda s: len(launched(s, "serving")) == 2)
                first, other = launched(full, "serving")
                os.kill(identity(first).pid, signal.SIGKILL)
                status = await sidecar.until(
                    "replacement", lambda s: any(x["name"] not in {first["name"], other["name"]} for x in launched(s, "serving"))
                )
                assert first["name"] not in {s["name"] for s in status["servers"]}
                await load.more(60)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert [p.pid for p in owned_processes(sidecar.state) if in_session(p, identity(first).pid)] == []
            names = {name for (name,) in sidecar.journal("select name from servers")}
            assert names == {s["name"] for s in launched(status)}
            reasons = [reason for (reason,) in sidecar.journal("select reason from ticks where changed order by at_s")]
            assert "replace" in reasons

        asyncio.run(scenario())


def in_session(process: psutil.Process, leader: int) -> bool:
    try:
        return os.getsid(process.pid) == leader
    except ProcessLookupError:
        return False


def night_walk(sidecar: Sidecar, folder: Path) -> None:
    """A growth that cannot succeed: an alert fires, and the runbook's commands tell cause, past and future, and stop it."""
    metrics = sidecar.metrics()
    demand = float(samples(metrics)['themis_demand_rps{pipeline="video",scale="fast"}'])
    summary = f"video needs {demand:.4g}/s, more than the ready servers carry, for 2 minutes"
    fires(metrics, "ThemisAboveCapacity", {"severity": "page", "pipeline": "video"}, summary, folder)
    ((action,),) = sidecar.journal("select action_id from outcomes where outcome = 'refused' order by seq desc limit 1")
    for words, pattern in walk(sidecar.settings):
        output = printed(sidecar, [words[0], action.partition("/")[0]] if words[0] == "why" else words, pattern)
        if SCREENSHOTS is not None:
            (Path(SCREENSHOTS) / f"walk-{words[0]}.txt").write_text(output)


def printed(sidecar: Sidecar, words: list[str], pattern: str) -> str:
    """What a command prints once it has the pattern: between two attempts there is a moment without a back-off, or without an outcome."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        ended = sidecar.command(*words)
        assert ended.returncode == 0, (words, ended.stderr)
        if re.search(pattern, ended.stdout):
            return ended.stdout
        assert time.monotonic() < deadline_s, (words, ended.stdout, ended.stderr)


def watch_and_resume(sidecar: Sidecar) -> None:
    """`themis top` shows the failure and the pause, explains the decision, and resumes once that is confirmed."""
    with watching(sidecar.settings, "top") as terminal:
        terminal.text(r"PAUSED[\s\S]*video[\s\S]*serving[\s\S]*w explains")
        terminal.press("\x1b[B")
        terminal.text(r"› \d\d:\d\d:\d\d")
        terminal.press("w")
        terminal.text("esc back")
        terminal.press("\x1b")
        terminal.text("w explains")
        terminal.press("r")
        terminal.text("Resume: decisions are carried out again")
        terminal.press("n")
        terminal.text("nothing was changed")
        terminal.press("ry")
        terminal.text("resumed: decisions are carried out again")
        terminal.press("q")
        assert terminal.end() == 0


def test_a_failed_growth_is_alerted_explained_paused_and_goes_on_once_it_can(launch: Launch, tmp_path: Path, fail_init_file: Path) -> None:
    lever = f"{ADOPTED}/{DETECTOR}"
    with beside(launch, tmp_path, slots=()) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            await asyncio.to_thread(fail_init_file.write_text, DETECTOR)
            async with traffic(sidecar, ONE_SERVER_RPS) as load:
                held = await sidecar.until("lever in back-off", lambda s: lever in s["backing_off"])
                assert held["backing_off"][lever] > held["at_s"]
                assert instances(held, DETECTOR) == 1
                assert (await sidecar.adopted_models())[DETECTOR].instances == 1
                twice = await sidecar.until("second attempt", lambda s: s["usage"]["failed_actions"].get("grow", 0) >= 2)
                assert "refused" in " ".join(event["sentence"] for event in twice["events"])
                await asyncio.to_thread(night_walk, sidecar, tmp_path)
                paused = await sidecar.until("the pause, and the end of a growth under way", lambda s: s["paused"] and not s["busy"])
                assert instances(paused, DETECTOR) == 1
                await asyncio.to_thread(fail_init_file.unlink)
                await asyncio.to_thread(watch_and_resume, sidecar)
                await sidecar.until("growth after all", lambda s: instances(s, DETECTOR) >= 2 and lever not in s["backing_off"])
                await adopted_reports_growth(sidecar, DETECTOR)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})

        try:
            asyncio.run(scenario())
        finally:
            fail_init_file.unlink(missing_ok=True)


def advises(status: Status) -> bool:
    """Whether the sentence says both what would grow and what would be launched."""
    return all(
        words in status["sentence"] for words in ("would ", f"launch cpu-1-{status['decision_id']}", f"grow {DETECTOR} on {ADOPTED} 1→")
    )


def typed(words: list[str], file: Path, sidecar: Sidecar, *more: str) -> str:
    """What a command of the documents prints with these settings and this Triton. Its load takes a second instead of a minute."""
    places = {"themis.yaml": str(file), "127.0.0.1:8001": str(sidecar.adopted.grpc_address), "60": "1"}
    command = [sys.executable, "-m", "themis_triton.cli", *(places.get(word, word) for word in words[1:]), *more]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


def first_settings(sidecar: Sidecar, folder: Path) -> None:
    """The documents' commands before the first start, with the adopted server and free ports."""
    file, server, (init, validate, run, *_) = folder / "own.yaml", sidecar.adopted, first_advice()
    where = (
        "--http",
        str(server.http_address),
        "--metrics",
        str(server.metrics_address),
        "--model-control-key",
        str(server.model_control_key),
    )
    assert "It has 2 models; fill in the SLOs" in typed(init, file, sidecar, *where)
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    sections = {"envoy": {"grpc_listen": grpc, "http_listen": http}, "status": {"address": status}}
    file.write_text(file.read_text() + yaml.safe_dump(sections))
    assert "all 2 models of the pipelines are ready" in typed(validate, file, sidecar)
    assert run == ["themis", "run", "-c", "themis.yaml"]


def first_look(sidecar: Sidecar) -> None:
    """The documents' commands beside the running sidecar."""
    for words in first_advice()[3:]:
        if words[1] == "top":
            with watching(sidecar.settings, "top") as terminal:
                terminal.text(r"advisory[\s\S]*w explains")
                terminal.press("q")
                assert terminal.end() == 0
            continue
        output = typed(words, sidecar.settings, sidecar)
        assert words[1] == "load" or ". To act: set mode: active and run `themis reload`" in output


def test_advisory_mode_shows_what_it_would_do_once_enough_is_learnt_and_changes_nothing(launch: Launch, tmp_path: Path) -> None:
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text())
    models = {DETECTOR: sample["models"][DETECTOR], CLASSIFIER: {"instances": [1, 6]}}  # The classifier has no profile.
    with beside(launch, tmp_path, mode="advisory", models=models) as sidecar:

        async def scenario() -> None:
            await asyncio.to_thread(first_settings, sidecar, tmp_path)
            first = await sidecar.start()
            assert [p["knowledge"]["enough"] for p in first["pipelines"]] == [False]
            assert "not enough is known to act, so it stays as it is: video-classifier has " in sidecar.command("status").stdout
            async with traffic(sidecar, SURGE_RPS) as load:
                # The first tick of a steep rise asks for servers only.
                status = await sidecar.until("advice", advises)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            last = await sidecar.until("another tick", lambda s: s["tick"] > status["tick"] + 4)
            assert last["mode"] == "advisory"
            assert [event["kinds"] for event in last["events"]].count(["service_times_learnt"]) == 1
            await asyncio.to_thread(first_look, sidecar)
            assert [s["name"] for s in last["servers"]] == [ADOPTED]
            assert last["usage"]["actions"] == {}
            assert await sidecar.adopted_models() == ONE_EACH
            assert sidecar.journal("select * from outcomes") == []

        asyncio.run(scenario())


def test_two_pipelines_on_one_slot_share_the_server_that_is_launched_keep_it_when_the_journal_is_lost_and_let_an_ensemble_in(
    launch: Launch, tmp_path: Path
) -> None:
    pipelines = {model: {"stages": [model], "slo_ms": 400} for model in (DETECTOR, CLASSIFIER)}
    with beside(launch, tmp_path, servers={}, pipelines=pipelines) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            status = await sidecar.until("a server", lambda s: bool(launched(s, "serving")))
            (server,) = status["servers"]
            assert {model for model, state in server["models"].items() if state["instances"]} == {DETECTOR, CLASSIFIER}
            async with traffic(sidecar, ONE_INSTANCE_RPS) as load:
                await sidecar.until("further ticks", lambda s: s["tick"] > status["tick"] + 16)
                records = [unpacked(record) for (record,) in sidecar.journal("select record from ticks")]
                assert any("shares the server that is launched on cpu-1" in record for record in records)
                await sidecar.kill()
                spoil(sidecar.state)
                with_ensemble(sidecar, tmp_path / "more")
                again = await sidecar.start()
                assert [(s["name"], s["phase"]) for s in again["servers"]] == [(server["name"], "serving")]
                assert [event["kinds"] for event in again["events"]][:1] == [["journal_replaced"]]
                await load.more(20)
                shared = await sidecar.until("the ensemble", lambda s: "both" in (s["servers"][0]["ready_models"] or ()))
                assert (len(shared["servers"]), shared["usage"]["failed_actions"]) == (1, {})
                async with calls(sidecar, "both", 2 * 7.0 + 4) as both:
                    await both.more(10)
                assert both.wrong == []
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            assert sidecar.journal("select name from servers") == [(server["name"],)]

        asyncio.run(scenario())


def with_ensemble(sidecar: Sidecar, folder: Path) -> None:
    """A further pipeline: an ensemble that the running server lacks, as it lacks one of its members."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    chain_ensemble(folder, "both", DETECTOR, ANALYSIS)
    settings["launch"]["model_repository"] = [settings["launch"]["model_repository"], str(folder)]
    settings["models"][ANALYSIS] = yaml.safe_load((shipped("config") / "themis.yaml").read_text())["models"][ANALYSIS]
    settings["pipelines"]["both"] = {"model": "both", "slo_ms": 400}
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))


def spoil(state: Path) -> None:
    """Overwrite the journal of a sidecar that was killed."""
    for path in state.glob(f"{journal_path(state).name}-*"):
        path.unlink()
    journal_path(state).write_bytes(b"no journal" * 1000)


def test_one_daemon_a_state_directory_and_down_ends_what_it_launched(launch: Launch, tmp_path: Path) -> None:
    policy = {"name": "vertical", "vertical": {"servers": 2}}
    with beside(launch, tmp_path, policy=policy) as sidecar:

        async def scenario() -> Mapping[str, Any]:
            await sidecar.start()
            server = launched(await sidecar.until("second server", lambda s: bool(launched(s, "serving"))))[0]
            await asyncio.to_thread(while_it_runs)
            (envoy,) = [process for process in owned_processes(sidecar.state) if process.name() == "envoy"]
            envoy.kill()
            told = await sidecar.until("Envoy's restart", lambda s: any("Envoy was started again" in e["sentence"] for e in s["events"]))
            assert f"Envoy (pid {envoy.pid}) has ended" in " ".join(event["sentence"] for event in told["events"])
            assert not psutil.pid_exists(envoy.pid)
            assert await sidecar.terminate() == 0
            return server

        def while_it_runs() -> None:
            shown = sidecar.command("status", "--json")
            assert shown.returncode == 0, shown.stderr
            assert {s["name"] for s in json.loads(shown.stdout.splitlines()[-1])["servers"]} > {ADOPTED}
            for word in ("run", "down"):
                refused = sidecar.command(word)
                assert refused.returncode == EnvironmentCheckError.exit_code, (word, refused.stderr)
                assert f"in use by the process with pid {sidecar.pid}. Fix:" in refused.stderr

        server = asyncio.run(scenario())
        silent = sidecar.command("status", "--json")
        assert (silent.returncode, silent.stdout) == (ServerError.exit_code, "")
        assert find_process(identity(server)) is not None
        ended = sidecar.command("down")
        assert ended.returncode == 0, ended.stderr
        assert find_process(identity(server)) is None
        assert owned_processes(sidecar.state) == []
        assert double(sidecar.adopted, DETECTOR, [3.0]) == [7.0]
        assert sidecar.command("down").stdout == f"nothing was running with {sidecar.state}\n"


def test_pause_holds_everything_resume_goes_on_why_tells_and_stop_leaves_it_serving(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path) as sidecar:

        def message(*words: str) -> str:
            ended = sidecar.command(*words)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout

        def edit_settings() -> None:
            whole = sidecar.settings.read_text()
            edited = whole.replace("stop_timeout_s: 3", "stop_timeout_s: 4")
            sidecar.settings.write_text(edited + "mode: advisory\nretention: {max_old_logs: 9}\n")
            for _ in range(int(TIMEOUT_S / POLL_S)):
                if "Fix: `themis reload`" in message("status"):
                    break
                time.sleep(POLL_S)
            assert "the settings file differs from what is in force: mode, retention. Fix: `themis reload`; launch since" in message(
                "status"
            )
            answer = message("reload")
            assert answer.startswith("settings reloaded: changed mode, retention; launch stay as they were until a restart. Fix: ")
            assert json.loads(message("status", "--json").splitlines()[-1])["mode"] == "advisory"
            sidecar.settings.write_text(whole + "mode: sometimes\n")
            refused = sidecar.command("reload")
            assert (refused.returncode, "mode: sometimes is invalid" in refused.stderr) == (SettingsError.exit_code, True)
            os.kill(sidecar.pid, signal.SIGHUP)
            for _ in range(int(TIMEOUT_S / POLL_S)):
                if "mode: sometimes is invalid" in sidecar.log.read_text():
                    break
                time.sleep(POLL_S)
            assert "settings_refused" in sidecar.log.read_text()
            sidecar.settings.write_text(whole)
            assert message("reload").startswith("settings reloaded: changed mode, retention")

        async def scenario() -> None:
            await sidecar.start()
            assert f"(sidecar with pid {sidecar.pid})" in await asyncio.to_thread(message, "pause")
            async with traffic(sidecar, ONE_SERVER_RPS) as load:
                paused = await sidecar.until("advice", lambda s: s["paused"] and "would grow" in s["sentence"])
                await sidecar.until("some ticks more", lambda s: s["tick"] > paused["tick"] + 4)
                assert await sidecar.adopted_models() == ONE_EACH
                assert "paused: nothing is changed" in await asyncio.to_thread(message, "status")
                await asyncio.to_thread(message, "resume")
                await sidecar.until("growth in place", lambda s: not s["paused"] and instances(s, DETECTOR) >= 2)
                await asyncio.to_thread(edit_settings)
                assert f"stopped the sidecar with pid {sidecar.pid}" in await asyncio.to_thread(message, "stop")
                await load.more(30)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})

        asyncio.run(scenario())
        rows = json.loads(message("history", "--limit", "1000", "--json").splitlines()[-1])
        grown = next(row for row in rows if f"grow {DETECTOR} on {ADOPTED}" in row["sentence"])
        assert f"grow {DETECTOR} on {ADOPTED} 1→" in message("why", grown["decision_id"])
        assert "no sidecar runs" in message("stop")
        # Pauses, edited settings and the changes of a surge: another process decides all of it again.
        replayed = sidecar.replayed()
        assert (replayed["differing"], replayed["first"]) == (0, None)
        assert replayed["ticks"] > 20


def test_the_sidecar_ticks_while_kernels_compile_and_a_stop_ends_daemon_and_compilers(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "empty-cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    with beside(launch, tmp_path) as sidecar:

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, SURGE_RPS) as load:
                await sidecar.until("growth in place", lambda s: instances(s, DETECTOR) >= 2)
                assert await sidecar.terminate() == 0
                await load.more(30)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})

        asyncio.run(scenario())
        assert "kernels_compiling" in sidecar.log.read_text()
        assert "kernels_compiled" not in sidecar.log.read_text()
        # A process that has just ended has no command line any more.
        assert not [p for p in psutil.process_iter(["cmdline"]) if str(cache) in " ".join(p.info["cmdline"] or ())]
