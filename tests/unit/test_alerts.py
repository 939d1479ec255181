"""The alerting rules: they use metrics that exist, fire as they should, and each has its section in the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.samples import NOW_S, config, record, server, snapshot
from tests.unit.status_api import tick
from themis_triton.adapters.exporter import Exporter
from themis_triton.core.attainment import EndedRequests
from themis_triton.core.decision import ClampKind, Reason

ROOT = Path(__file__).parents[2]
RULES, RULES_TEST = ROOT / "deploy" / "themis-alerts.yaml", ROOT / "deploy" / "themis-alerts-test.yaml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
PROMTOOL = shutil.which("promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: it is in Debian's package prometheus")


def exposition() -> str:
    exporter = Exporter()
    exporter.take(tick(NOW_S), 0.01)
    exporter.show_times(config(), 0.0, 0.1)
    exporter.count_requests(config().pipelines, {"video": EndedRequests(10.0, 1.0)})
    return exporter.text().decode()


def test_no_counter_tells_when_it_was_created() -> None:
    assert "_created" not in exposition()


def promtool(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *words], input=text, capture_output=True, text=True, check=False, timeout=60)


def test_every_alert_uses_metrics_that_are_exported() -> None:
    known = set(re.findall(r"^# TYPE (\S+)", exposition(), re.MULTILINE))
    for alert in ALERTS:
        used = set(re.findall(r"\bthemis_\w+", alert["expr"]))
        assert used <= known, alert["alert"]


def test_the_dashboard_uses_metrics_that_are_exported_and_no_two_panels_overlap() -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", exposition(), re.MULTILINE))
    panels = json.loads((ROOT / "deploy" / "themis-dashboard.json").read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for text in expressions for name in re.findall(r"\b(?:themis|process)_\w+", text)}
    assert used <= exported
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(taken) == len(set(taken))


def test_every_alert_is_tested_and_has_its_section_in_the_runbook() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text(encoding="utf-8"))["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    for alert in ALERTS:
        name = alert["alert"]
        assert name in tested
        assert f"### {name}\n" in RUNBOOK
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert len(re.findall(r"^### ", RUNBOOK, re.MULTILINE)) == len(ALERTS)


def test_the_runbook_has_every_reason_to_hold_and_every_kind_of_limit() -> None:
    for name in [*(reason.value for reason in Reason if reason.value.startswith("hold_")), *(kind.value for kind in ClampKind)]:
        assert f"| `{name}` |" in RUNBOOK, name


@NEEDS_PROMTOOL
def test_promtool_finds_the_metrics_and_the_rules_good() -> None:
    metrics = promtool("check", "metrics", text=exposition())
    assert (metrics.returncode, metrics.stdout + metrics.stderr) == (0, "")
    rules = promtool("test", "rules", str(RULES_TEST))
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_a_pause_is_no_advisory_mode() -> None:
    exporter = Exporter()
    advised = record(seen=snapshot([server("a")]), advisory=True)
    exporter.take(advised, 0.01, paused=True)
    assert "themis_paused 1.0\n" in exporter.text().decode()
    assert "themis_advisory 0.0\n" in exporter.text().decode()
    exporter.take(advised, 0.01)
    assert "themis_paused 0.0\n" in exporter.text().decode()
    assert "themis_advisory 1.0\n" in exporter.text().decode()
