import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.report.pictures import draw_comparison, draw_run
from themis_triton.report.series import EventKind, RunEvent, RunSeries

PNG = b"\x89PNG\r\n\x1a\n"


def run(label: str = "themis", seconds: int = 60, p99_ms: float = 150.0, *, events: bool = True) -> RunSeries:
    marks = tuple(RunEvent(float(5 + 3 * index), kind) for index, kind in enumerate(EventKind)) if events else ()
    rate = [30.0 + 2.0 * second for second in range(seconds)]
    return RunSeries(
        label=label,
        rate_rps=rate,
        capacity_rps=[None] * min(3, seconds) + [100.0] * (seconds - min(3, seconds)),
        p99_ms=[None if second == 10 else p99_ms for second in range(seconds)],
        servers=[1 + second // 30 for second in range(seconds)],
        instances=[4 + second // 10 for second in range(seconds)],
        failed=[int(second == 20) for second in range(seconds)],
        violations=[3 if second in (19, 20) else 0 for second in range(seconds)],
        events=marks,
    )


def size_of(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == PNG
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


DARK = RunSeries("dark", [0.0] * 5, [None] * 5, [None] * 5, [None] * 5, [None] * 5, [0] * 5, [0] * 5)


@pytest.mark.parametrize(
    "series",
    [run(), run(events=False), run(p99_ms=9000.0), run(seconds=1), DARK],
    ids=["whole", "no events", "far beyond the SLO", "one second", "nothing known"],
)
def test_a_run_is_drawn_without_a_warning(tmp_path: Path, series: RunSeries) -> None:
    path = tmp_path / "run.png"
    draw_run(series, 300.0, "A run", path)
    width, height = size_of(path)
    assert width == 1500
    assert 700 < height < 1700
    assert path.stat().st_size > 20_000


def test_a_comparison_overlays_runs_of_different_length(tmp_path: Path) -> None:
    path = tmp_path / "compared.png"
    draw_comparison([run("themis"), run("horizontal", 50, 2000.0), run("vertical", 60, 400.0)], 300.0, "Policies", path)
    assert size_of(path)[0] == 1500


def test_the_file_type_follows_the_name_and_text_says_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    draw_run(run(), 300.0, "A run", path)
    text = path.read_text()
    for message in ("A run", "outside the SLO of 300 ms, 1 failed", "server launched", "p99 latency"):
        assert message in text, message


def test_pyplot_and_its_global_figures_are_left_alone(tmp_path: Path) -> None:
    matplotlib = importlib.import_module("matplotlib")
    before = dict(matplotlib.rcParams)
    draw_run(run(), 300.0, "A run", tmp_path / "run.png")
    assert importlib.import_module("matplotlib._pylab_helpers").Gcf.figs == {}
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["nowhere/run.png", "run.wrong"])
def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        draw_run(run(), 300.0, "A run", tmp_path / name)


def test_without_the_extra_its_name_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentCheckError, match=r"themis-triton\[report\]"):
        draw_run(run(), 300.0, "A run", tmp_path / "run.png")


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        RunSeries("bad", [1.0], [1.0, 2.0], [1.0], [1], [1], [0], [0])


def test_a_comparison_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        draw_comparison([], 300.0, "Nothing", tmp_path / "none.png")


def test_numbers_may_be_arrays(tmp_path: Path) -> None:
    ones = np.ones(5)
    draw_run(RunSeries("array", ones, ones, ones, ones, ones, [0] * 5, [0] * 5), 300.0, "Arrays", tmp_path / "run.png")
    assert size_of(tmp_path / "run.png")[0] == 1500
