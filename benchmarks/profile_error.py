"""How far the measured profiles of emulated models are from their true surfaces: a table a model, with picture and page of each profile."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import commit, machine, shortened
from google.protobuf import json_format

from themis_triton.emulation.parameters import read_parameters
from themis_triton.profile.files import read_profile
from themis_triton.profile.identity import model_config
from themis_triton.report.profile_html import write_report
from themis_triton.report.profile_pictures import draw_profile

WANTED = 0.05
REPOSITORY = Path(__file__).parents[1] / "model_repository"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", type=Path, nargs="+", help="profile files of emulated models")
    parser.add_argument("--out", type=Path, required=True, help="folder for error.json, error.md, pictures and profiles.html")
    parser.add_argument("--note", default="", help="a sentence for error.md, such as what else ran on the machine")
    options = parser.parse_args()
    at = commit()  # before results of its own change the tree
    profiles = {path.stem: read_profile(path) for path in options.profiles}
    rows = []
    for model, profile in profiles.items():
        config = json.loads(json_format.MessageToJson(model_config(REPOSITORY / model), preserving_proto_field_name=True))
        surface = read_parameters(model, config).surface
        draw_profile(profile, model, options.out / f"{model}.png")
        if profile.measured is None:
            raise SystemExit(f"{model}: not measured")
        for point in profile.measured.points:
            true_ms = surface.service_ms(point.batch, point.instances)
            rows.append(
                {
                    "model": model,
                    "batch": point.batch,
                    "instances": point.instances,
                    "true_ms": true_ms,
                    "measured_ms": point.service_ms,
                    "mean_ms": point.mean_ms,
                    "error": round(point.service_ms / true_ms - 1.0, 4),
                    "mean_error": round(point.mean_ms / true_ms - 1.0, 4),
                }
            )
    write_report(profiles, options.out / "profiles.html")
    found = {"machine": machine(), "commit": at, "rows": rows}
    (options.out / "error.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = ["| model | b | k | true ms | percentile ms | error | mean ms | error |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r['model']} | {r['batch']} | {r['instances']} | {r['true_ms']:g} | {r['measured_ms']:.2f} | {100 * r['error']:+.1f} % "
        f"| {r['mean_ms']:.2f} | {100 * r['mean_error']:+.1f} % |"
        for r in rows
    ]
    worst = max(abs(float(str(row["error"]))) for row in rows)
    within = sum(abs(float(str(row["error"]))) <= WANTED for row in rows)
    lines.append(
        f"\nLargest error at the percentile: {100 * worst:.1f} %; {within} of {len(rows)} points within {100 * WANTED:g} %. {options.note}"
        f"\n\nOn {machine()['processor']}, {machine()['cores']} cores; commit {shortened(at)}."
    )
    (options.out / "error.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
