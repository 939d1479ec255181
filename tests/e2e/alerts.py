"""The shipped alerting rules over what a running sidecar exports, evaluated by Prometheus' own promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml

RULES = Path(__file__).parents[2] / "deploy" / "themis-alerts.yaml"
PROMTOOL = shutil.which("promtool")
SAMPLE = re.compile(r"^(themis_\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def samples(metrics: str) -> dict[str, str]:
    """The value of each of Themis's own series, by its name and labels."""
    return dict(SAMPLE.findall(metrics))


def fires(metrics: str, alert: str, labels: dict[str, str], summary: str, folder: Path) -> None:
    """Fail unless the metrics are as Prometheus has them, and the alert fires with these labels after five minutes of the same metrics.

    promtool writes no number that is not one: such a sample is left out.

    Without promtool nothing is evaluated.
    """
    if PROMTOOL is None:
        return
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    expected = {"exp_labels": labels, "exp_annotations": {"summary": summary, "runbook": f"docs/runbook.md#{alert.lower()}"}}
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": f"{'_' if value == 'NaN' else value}x40"} for name, value in samples(metrics).items()],
        "alert_rule_test": [{"eval_time": "5m", "alertname": alert, "exp_alerts": [expected]}],
    }
    path = folder / f"{alert}.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]}), encoding="utf-8")
    ended = subprocess.run([PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
