"""Pictures and the page of a profile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_profile_files import CONDITIONS, point
from themis_triton.core.errors import SettingsError
from themis_triton.profile.files import Progress
from themis_triton.profile.grid import GridPlan
from themis_triton.profile.run import finished
from themis_triton.report.profile_html import write_report
from themis_triton.report.profile_pictures import draw_profile, fitted_ms, knee, throughput_rps
from themis_triton.settings.measured import FitSettings
from themis_triton.settings.profile import ProfileSettings, TableSettings

POINTS = [point(b, k, 4.0 * b * k + 8.0 * b + 4.0 * k + 20.0) for b in (1, 2, 4) for k in (1, 2, 4)]
PROFILE = finished(Progress(conditions=CONDITIONS, points=POINTS, instance_init_s=0.5), GridPlan(4, 4), traced=True)
DECLARED = ProfileSettings(table=TableSettings(batches=[1], instances=[1], latency_ms=[[18.0]]))


def test_the_knee_is_where_more_instances_buy_little() -> None:
    assert knee([1, 2, 4, 8], [10.0, 19.0, 20.0, 20.5]) == 2
    assert knee([1, 2, 4], [10.0, 20.0, 40.0]) == 4
    assert knee([1], [3.0]) == 1


def test_throughput_counts_whole_batches_of_all_instances() -> None:
    table = TableSettings(batches=[1, 4], instances=[1, 2], latency_ms=[[10.0, 20.0], [40.0, 50.0]])
    assert throughput_rps(table, 1) == [100.0, 160.0]


def test_fitted_values_of_both_forms() -> None:
    numbers = {"alpha_ms": 4.0, "beta_ms": 8.0, "gamma_ms": 4.0, "zeta_ms": 20.0, "cross_error": 0.0}
    assert fitted_ms(FitSettings(form="contention", kept=True, **numbers), 2, 3.0) == 72.0
    assert fitted_ms(FitSettings(form="cores", kept=True, **numbers), 2, 4.0) == 39.0


def test_a_picture_is_written(tmp_path: Path) -> None:
    draw_profile(PROFILE, "detector", tmp_path / "detector.png")
    assert (tmp_path / "detector.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_loads_nothing_and_holds_every_point(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report({"detector <1>": PROFILE}, path)
    page = path.read_text(encoding="utf-8")
    assert "detector &lt;1&gt;" in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert page.count("<tr><td>1</td>") + page.count("<tr><td>2</td>") + page.count("<tr><td>4</td>") == len(POINTS)


def test_a_declared_profile_has_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="detector: a declared profile has no measurements"):
        draw_profile(DECLARED, "detector", tmp_path / "x.png")
