"""Settings with `launch.kind: kubernetes`: what they become, and what each mistake is told with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from themis_triton.adapters.kubernetes.check import check_cluster
from themis_triton.adapters.kubernetes.pods import pod_name
from themis_triton.adapters.kubernetes.quantities import parse_quantity
from themis_triton.commands.bench_place import BenchFlags, resolve
from themis_triton.core.config import KubernetesLaunchConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.settings import load_settings

SETTINGS = """\
launch:
  kind: kubernetes
  model_repository: models
  kubernetes:
    namespace: inference
    pod_template: pod.yaml
    pods: 3
    memory: 20GiB
    key_file: key
    instance_cpu: 500m
    instance_memory: 1GiB
models:
  detector: {profile: {surface: {form: contention, alpha_ms: 1, beta_ms: 2, gamma_ms: 1, zeta_ms: 6}}}
pipelines:
  video: {stages: [detector], slo_ms: 300}
"""
TEMPLATE = """\
apiVersion: v1
kind: Pod
spec:
  containers:
    - name: triton
      image: tritonserver
      args: [--model-repository=/models]
      resources: {requests: {cpu: 1, memory: 1Gi}}
"""


def loaded(folder: Path, settings: tuple[str, str] = ("", ""), template: tuple[str, str] = ("", "")) -> ThemisConfig:
    (folder / "models" / "detector").mkdir(parents=True)
    assert settings[0] in SETTINGS
    assert template[0] in TEMPLATE
    (folder / "pod.yaml").write_text(TEMPLATE.replace(*template), encoding="utf-8")
    path = folder / "themis.yaml"
    path.write_text(SETTINGS.replace(*settings), encoding="utf-8")
    return load_settings(path)


def test_each_pod_is_a_slot_with_a_device_of_its_own_that_is_not_read_here(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    launch = config.launch
    assert isinstance(launch, KubernetesLaunchConfig)
    assert [(slot.name, slot.device, slot.memory_bytes) for slot in launch.slots] == [
        (f"pod-{n}", f"pod:{n}", 20 * 2**30) for n in (1, 2, 3)
    ]
    assert (launch.instance_cpu_m, launch.instance_memory_bytes) == (500, 2**30)
    assert (launch.pod_template, launch.key_file) == (tmp_path / "pod.yaml", tmp_path / "key")
    assert config.devices == ("pod:1", "pod:2", "pod:3")
    assert config.local_devices == ()
    with pytest.raises(SettingsError, match="cannot be measured with launched servers"):
        resolve(BenchFlags(config=tmp_path / "themis.yaml"))


NOTHING = ("", "")


@pytest.mark.parametrize(
    ("settings", "template", "message"),
    [
        (("  kind: kubernetes\n", ""), NOTHING, r"launch: `kubernetes` is set with kind: local: expected `slots` alone\. Fix: "),
        (
            ("  kubernetes:\n", "  slots: [gpu:0]\n  kubernetes:\n"),
            NOTHING,
            "`slots` is set with kind: kubernetes: expected `kubernetes` alone",
        ),
        (("  kubernetes:\n", "  reach: [gpu:0]\n  kubernetes:\n"), NOTHING, "`reach` is set with kind: kubernetes.*Fix: remove `reach`"),
        (("  model_repository: models\n", ""), NOTHING, "`model_repository` is missing with kind: kubernetes"),
        (("500m", "half"), NOTHING, r"instance_cpu: half is invalid: expected processors or thousandths of them, such as 2 or 500m"),
        (("inference", "In_1"), NOTHING, r"namespace: In_1 is invalid: expected a Kubernetes name"),
        (("    pod_template: pod.yaml\n", ""), NOTHING, "neither `pod_template` nor `keda` is set: expected one of"),
        (("pod_template: pod.yaml", "keda: {listen: 0.0.0.0:9190, selector: {app: triton}}"), NOTHING, "`instance_cpu` is set with `keda`"),
        (NOTHING, ("kind: Pod", "kind: Deployment"), r"pod_template: .*pod\.yaml: is not a pod"),
        (NOTHING, ("      image: tritonserver\n", ""), "container triton: image is missing.*Fix: name an image"),
        (NOTHING, ("[--model-repository=/models]", "[]"), "no --model-repository among its arguments"),
        (NOTHING, ("/models]", "/models, --model-control-mode=poll]"), "--model-control-mode=poll is set by Themis.*Fix: remove it"),
        (NOTHING, ("spec:\n", "spec:\n  restartPolicy: Always\n"), "restartPolicy: Always is invalid: expected Never"),
        (NOTHING, ("cpu: 1, ", ""), r"instance_cpu: the container of pod\.yaml has no cpu.*Fix: write resources\.requests\.cpu there"),
        (NOTHING, ("memory: 1Gi", "memory: 1 GB"), "'1 GB' is not a quantity, such as 500m or 4Gi"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(
    tmp_path: Path, settings: tuple[str, str], template: tuple[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        loaded(tmp_path, settings, template)
    assert "themis.yaml:" in str(refused.value)


def test_validate_names_what_is_missing_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    launch = loaded(tmp_path).launch
    assert isinstance(launch, KubernetesLaunchConfig)
    cluster, key = asyncio.run(check_cluster(launch))
    assert (cluster.exit_code, key.exit_code) == (3, 3)
    assert "no cluster is configured here" in cluster.found
    assert "mount the Secret themis-model-control there" in key.remedy


def test_names_and_quantities_are_those_of_kubernetes() -> None:
    names = [pod_name("themis", name) for name in ("pod-1-d7", "Pod_1", "pod.1", "x" * 80, "x" * 81)]
    assert names[0] == "themis-pod-1-d7"
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 and name.replace("-", "").isalnum() and name.lower() == name for name in names)
    assert [parse_quantity(text) for text in ("500m", "2", "1.5Gi", "3e3", "4k")] == [
        parse_quantity(n) for n in ("0.5", 2, 1610612736, 3000, 4000)
    ]
