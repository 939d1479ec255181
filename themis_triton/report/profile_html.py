"""One self-contained HTML page about profiles: pictures, and tables of points, fits and operations."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from themis_triton.core.errors import SettingsError
from themis_triton.report.profile_pictures import draw_profile, knee, throughput_rps
from themis_triton.settings.measured import MeasuredSettings, OperationsSettings
from themis_triton.settings.profile import ProfileSettings

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #e4e7eb;text-align:right}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%}"
)


def write_report(profiles: Mapping[str, ProfileSettings], path: Path) -> None:
    """Write a page of the profiles by model. It loads nothing from elsewhere.

    EnvironmentCheckError without matplotlib, SettingsError if a profile was not measured or the file cannot be written.
    """
    body = "".join(_section(model, profile) for model, profile in profiles.items())
    head = f'<meta charset="utf-8"><title>Profiles</title><style>{_STYLE}</style>'
    page = f'<!doctype html><html lang="en">{head}<h1>Profiles</h1>{body}</html>\n'
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: the report cannot be written ({error.strerror}). Fix: name a file in a writable folder") from error


def _section(model: str, profile: ProfileSettings) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "profile.png"
        draw_profile(profile, model, picture)
        encoded = base64.b64encode(picture.read_bytes()).decode("ascii")
    if profile.measured is None:
        raise ValueError("the profile has no measurements")
    image = f'<img alt="surface, throughput and residuals of {html.escape(model)}" src="data:image/png;base64,{encoded}">'
    parts = (_facts(profile, profile.measured), image, _points(profile.measured), _operations(profile.operations))
    return f"<h2>{html.escape(model)}</h2>{''.join(parts)}"


def _facts(profile: ProfileSettings, measured: MeasuredSettings) -> str:
    table = profile.table
    rows = [
        ("device", measured.device),
        ("Triton", measured.triton_version),
        ("measured", f"{measured.at} on {measured.machine}, p{measured.percentile:g}, by {measured.source.value}"),
        ("one more instance", f"{profile.instance_init_s:.2f} s, {profile.instance_memory.human_readable()}"),
        ("one fewer", f"{profile.instance_stop_s:.2f} s"),
    ]
    if measured.launch is not None:
        phases = measured.launch
        start = f"process {phases.process_s:.2f} s, load {phases.load_s:.2f} s"
        rows.append(("launch", f"{start}, ready {phases.ready_s:.2f} s, warm-up {phases.warm_up_s:.2f} s"))
    if table is not None:
        knees = [f"b {b}: {knee(table.instances, throughput_rps(table, row))}" for row, b in enumerate(table.batches)]
        rows.append(("knee (instances)", ", ".join(knees)))
    for fit in measured.fits:
        numbers = f"α {fit.alpha_ms:g}, β {fit.beta_ms:g}, γ {fit.gamma_ms:g}, ζ {fit.zeta_ms:g} ms"
        rows.append(
            (f"fit {fit.form}", f"{numbers}; {100 * fit.cross_error:.1f} % cross-validation error; {'kept' if fit.kept else 'not kept'}")
        )
    return _table(("", ""), rows)


def _points(measured: MeasuredSettings) -> str:
    head = (
        "b",
        "k",
        "samples",
        f"p{measured.percentile:g} ms",
        "95 % interval",
        "mean ms",
        "statistics ms",
        "queue ms",
        "client ms",
        "outliers",
        "fit error",
    )
    rows = [
        (
            str(p.batch),
            str(p.instances),
            str(p.samples),
            f"{p.service_ms:.2f}",
            f"{_shown(p.low_ms)} – {_shown(p.high_ms)}",
            f"{p.mean_ms:.2f}",
            f"{p.statistics_ms:.2f}",
            f"{p.queue_ms:.2f}",
            f"{p.client_ms:.2f}",
            str(p.outliers),
            "" if p.fit_error is None else f"{100 * p.fit_error:+.1f} %",
        )
        for p in measured.points
    ]
    return _table(head, rows)


def _operations(operations: OperationsSettings | None) -> str:
    if operations is None:
        return "<p>Operations were not probed.</p>"
    rows = [
        (
            name,
            "refused" if operation.refused is not None else "in place" if operation.in_place else "reload",
            f"{operation.duration_s:.2f} s",
            f"{operation.errors} of {operation.requests}",
            f"{operation.latency_added_ms:.0f} ms",
            operation.memory_peak.human_readable(),
        )
        for name, operation in operations
        if operation is not None
    ]
    return _table(("operation", "method", "duration", "errors", "added latency", "peak memory"), rows)


def _shown(value: float | None) -> str:
    return "open" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"
