import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from themis_triton.commands.stop_command import pause_command, resume_command, stop_command
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon.control import LOCK_FILE, is_paused, running_pid, set_paused
from themis_triton.daemon.lock import locked

HOLDER = """
import signal, sys
from pathlib import Path
from themis_triton.daemon.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    signal.sigwait([signal.SIGTERM])
"""


@contextmanager
def holder(state: Path) -> Iterator[int]:
    """A process that holds the state directory until SIGTERM, as a sidecar does; yields its pid."""
    program = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])" + HOLDER
    with subprocess.Popen([sys.executable, "-c", program, str(state)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process.pid
        finally:
            process.terminate()


def settings(folder: Path) -> Path:
    path = folder / "themis.yaml"
    path.write_text("state_directory: state\n")
    return path


def test_stop_ends_the_sidecar_and_says_what_serves_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings(tmp_path)
    with holder(tmp_path / "state") as pid:
        assert running_pid(tmp_path / "state") == pid
        stop_command(path)
        assert f"stopped the sidecar with pid {pid}" in capsys.readouterr().out
        assert running_pid(tmp_path / "state") is None
    stop_command(path)
    assert capsys.readouterr().out == f"no sidecar runs with {tmp_path / 'state'}\n"


def test_a_sidecar_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings(tmp_path)

    with holder(tmp_path / "state") as pid, monkeypatch.context() as patched:
        send = os.kill
        patched.setattr(os, "kill", lambda pid, _: send(pid, 0))
        patched.setattr("themis_triton.daemon.control.STOP_WITHIN_S", 0.2)
        with pytest.raises(EnvironmentCheckError, match=f"pid {pid} still runs 0.2 s after SIGTERM"):
            stop_command(path)


def test_a_lock_that_a_dead_process_left_means_that_none_runs(tmp_path: Path) -> None:
    assert running_pid(tmp_path) is None
    with locked(tmp_path):
        pass
    assert running_pid(tmp_path) is None
    for message in ("", "4194305", "nonsense"):
        (tmp_path / LOCK_FILE).write_text(message)
        assert running_pid(tmp_path) is None


def test_a_pause_is_a_file_that_outlives_the_sidecar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, state = settings(tmp_path), tmp_path / "state"
    pause_command(path)
    assert is_paused(state)
    assert "paused: nothing is changed until `themis resume" in capsys.readouterr().out
    resume_command(path)
    assert not is_paused(state)
    assert capsys.readouterr().out.startswith("resumed")
    resume_command(path)
    assert capsys.readouterr().out.startswith("was not paused")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(EnvironmentCheckError, match=r"state_directory: .*paused cannot be changed"):
        set_paused(tmp_path / "state", True)
