"""Emulated service times: the surface, its progress under changing contention, and its cost."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from themis_triton.emulation.device import DeviceSeat
from themis_triton.emulation.service import Service, noise_factors
from themis_triton.emulation.surface import Surface


@pytest.fixture
def seats(tmp_path: Path) -> Iterator[tuple[DeviceSeat, DeviceSeat]]:
    pair = DeviceSeat("cpu:0", tmp_path), DeviceSeat("cpu:0", tmp_path)
    yield pair
    for seat in pair:
        seat.close()


def one() -> float:
    return 1.0


def timed_ms(service: Service, batch: int) -> float:
    started_s = time.perf_counter()
    service.serve(batch)
    return 1000 * (time.perf_counter() - started_s)


@pytest.mark.parametrize(("batch", "busy", "expected_ms"), [(1, 1, 36), (4, 1, 72), (1, 4, 60), (8, 12, 516)])
def test_surface(batch: int, busy: int, expected_ms: float) -> None:
    assert Surface(4, 8, 4, 20).service_ms(batch, busy) == expected_ms


@pytest.mark.parametrize("batch", [1, 4])
def test_the_mean_service_time_is_the_surfaces(seats: tuple[DeviceSeat, DeviceSeat], batch: int) -> None:
    surface = Surface(1, 2, 1, 8)
    service = Service(surface, seats[0], one, one)
    # A mean of 25 catches what else this machine runs; of three, one is left alone.
    means = (statistics.mean(timed_ms(service, batch) for _ in range(25)) for _ in range(3))
    assert any(mean == pytest.approx(surface.service_ms(batch, 1), rel=0.05) for mean in means)


def test_what_the_caller_takes_is_part_of_the_service_time(seats: tuple[DeviceSeat, DeviceSeat]) -> None:
    service = Service(Surface(0, 0, 0, 40), seats[0], one, one, around_s=0.005)
    means = (statistics.mean(timed_ms(service, 1) for _ in range(10)) for _ in range(3))  # of three, one is left alone
    assert any(mean == pytest.approx(35, abs=1.5) for mean in means)


def test_another_busy_instance_slows_it_down_while_it_is_busy(seats: tuple[DeviceSeat, DeviceSeat]) -> None:
    mine, other = seats
    service = Service(Surface(0, 0, 100, 0), mine, one, one)
    with other.busy():
        assert timed_ms(service, 1) == pytest.approx(200, abs=20)

    def busy_for_100_ms() -> None:
        with other.busy():
            started.set()
            time.sleep(0.1)

    started = threading.Event()
    neighbour = threading.Thread(target=busy_for_100_ms)
    neighbour.start()
    started.wait(5)
    # Half of the work is done in the first 100 ms at half speed, the other half in 50 ms alone.
    assert timed_ms(service, 1) == pytest.approx(150, abs=25)
    neighbour.join(5)


def test_scale_and_noise_multiply(seats: tuple[DeviceSeat, DeviceSeat]) -> None:
    service = Service(Surface(0, 0, 0, 40), seats[0], lambda: 1.5, lambda: 2.0)
    assert timed_ms(service, 1) == pytest.approx(120, abs=15)


def test_it_waits_without_burning_cpu(seats: tuple[DeviceSeat, DeviceSeat]) -> None:
    service = Service(Surface(0, 0, 0, 500), seats[0], one, one)
    before_s = time.thread_time()
    service.serve(1)
    assert time.thread_time() - before_s < 0.05


def test_noise_has_mean_one_and_repeats() -> None:
    factors = noise_factors(0.2, "video-detector_0_1")
    values = [factors() for _ in range(4000)]
    assert statistics.mean(values) == pytest.approx(1, abs=0.02)
    assert statistics.stdev(values) == pytest.approx(0.2, abs=0.02)
    again, other = noise_factors(0.2, "video-detector_0_1"), noise_factors(0.2, "video-detector_0_2")
    assert again() == values[0]
    assert other() != values[0]
    assert noise_factors(0, "any")() == 1.0
