"""The emulated device's table: who counts as busy, and what is left when processes die."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from themis_triton.emulation.device import SEATS, DeviceSeat, instance_device, process_start_ticks, slot_name, table_directory, table_path

NO_PROCESS = 2**22 + 1


def write_seat(path: Path, seat: int, pid: int, start: int, busy: int) -> None:
    """What another process would have written."""
    table = np.memmap(path, dtype=np.int64, mode="r+", shape=(3, SEATS))
    table[:, seat] = (pid, start, busy)
    table.flush()


def test_counts_the_busy_seats_of_its_own_slot(tmp_path: Path) -> None:
    first, second, elsewhere = (DeviceSeat(slot, tmp_path) for slot in ("cpu:0", "cpu:0", "cpu:1"))
    with first.busy():
        assert (first.busy_count(), second.busy_count(), elsewhere.busy_count()) == (1, 1, 0)
        with second.busy(), elsewhere.busy():
            assert (first.busy_count(), second.busy_count(), elsewhere.busy_count()) == (2, 2, 1)
    assert first.busy_count() == 0
    for seat in (first, second, elsewhere):
        seat.close()


def test_a_failure_while_busy_frees_the_device(tmp_path: Path) -> None:
    seat = DeviceSeat("cpu:0", tmp_path)
    with pytest.raises(ZeroDivisionError), seat.busy():
        _ = 1 / 0
    assert seat.busy_count() == 0
    seat.close()


@pytest.mark.parametrize(("pid", "start"), [(NO_PROCESS, 5), (os.getpid(), 1)], ids=["process is gone", "pid was given away again"])
def test_a_process_that_died_while_busy_stops_counting(tmp_path: Path, pid: int, start: int) -> None:
    seat = DeviceSeat("cpu:0", tmp_path)
    write_seat(seat.path, 7, pid, start, busy=1)
    with seat.busy():
        assert seat.busy_count() == 1
    seat.close()


def test_a_live_process_keeps_counting(tmp_path: Path) -> None:
    seat = DeviceSeat("cpu:0", tmp_path)
    write_seat(seat.path, 7, os.getppid(), process_start_ticks(os.getppid()), busy=1)
    assert seat.busy_count() == 1
    seat.close()
    assert seat.path.exists(), "the other process still sits at the table"


def test_the_last_one_removes_the_table(tmp_path: Path) -> None:
    first, second = DeviceSeat("cpu:0", tmp_path), DeviceSeat("cpu:0", tmp_path)
    first.close()
    assert list(tmp_path.iterdir()) == [second.path]
    second.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_seats_of_the_dead_are_taken_again(tmp_path: Path) -> None:
    first = DeviceSeat("cpu:0", tmp_path)
    for seat in range(1, SEATS):
        write_seat(first.path, seat, NO_PROCESS, 5, busy=1)
    second = DeviceSeat("cpu:0", tmp_path)
    with second.busy():
        assert first.busy_count() == 1
    first.close()
    second.close()


def test_a_full_table_says_so(tmp_path: Path) -> None:
    first = DeviceSeat("cpu:0", tmp_path)
    start = process_start_ticks(os.getpid())
    for seat in range(1, SEATS):
        write_seat(first.path, seat, os.getpid(), start, busy=0)
    with pytest.raises(
        RuntimeError, match=f"the emulated device is full: expected at most {SEATS} instances. Fix: use another THEMIS_EMULATED_DEVICE"
    ):
        DeviceSeat("cpu:0", tmp_path)
    first.close()


def test_tables_of_killed_servers_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    live, killed = DeviceSeat("live", tmp_path), table_path("killed", tmp_path)
    killed.write_bytes(live.path.read_bytes())
    write_seat(killed, 0, NO_PROCESS, 5, busy=1)
    stranger = tmp_path / "something-else"
    stranger.touch()
    seat = DeviceSeat("cpu:0", tmp_path)
    assert set(tmp_path.iterdir()) == {live.path, seat.path, stranger}
    live.close()
    seat.close()


def test_many_come_and_go_at_once(tmp_path: Path) -> None:
    def visit(_: int) -> int:
        seat = DeviceSeat("cpu:0", tmp_path)
        with seat.busy():
            count = seat.busy_count()
        seat.close()
        return count

    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(visit, range(200)))
    assert min(counts) >= 1
    assert max(counts) <= 16
    assert list(tmp_path.iterdir()) == []


def test_start_time_is_the_kernels() -> None:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    started_s = psutil.boot_time() + process_start_ticks(os.getpid()) / ticks_per_s
    assert started_s == pytest.approx(psutil.Process().create_time(), abs=2)
    assert process_start_ticks(NO_PROCESS) == 0


def test_slot_and_directory_come_from_the_environment() -> None:
    assert slot_name({"THEMIS_EMULATED_DEVICE": "gpu:1"}) == "gpu:1"
    assert slot_name({}) == f"cpu:0@{os.getppid()}"
    assert table_directory({"THEMIS_EMULATED_DIRECTORY": "/somewhere"}) == Path("/somewhere")
    assert table_directory({}) == Path("/dev/shm")  # noqa: S108 - nothing is written there
    assert table_path("a/b c", Path("/x")).parent == Path("/x")


@pytest.mark.parametrize(
    ("instance", "device"),
    [
        ("video-detector_0_3", "cpu-0@host"),
        ("main_0", "cpu-0@host"),
        ("video-detector_cpu:1_0", "cpu-1@host"),
        ("video-detector_gpu:GPU-0a-1_12", "gpu-GPU-0a-1@host"),
        ("other_cpu:1_0", "cpu-0@host"),
    ],
)
def test_an_instances_name_has_its_device(instance: str, device: str) -> None:
    assert instance_device(instance, "video-detector", {"THEMIS_EMULATED_DEVICE": "cpu-0@host"}) == device
