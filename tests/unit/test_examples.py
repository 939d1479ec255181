"""The examples: each has its page, its settings are valid, and what they name exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from themis_triton import cli
from themis_triton.settings import load_settings

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
SETTINGS = sorted(path for path in EXAMPLES.glob("*/*.yaml") if path.name != "compose.yaml")
IN_CONTAINER = "/models"
COMPOSE = EXAMPLES / "docker-compose" / "compose.yaml"


@pytest.fixture
def readable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An example's settings; the repository of a container is one of this checkout, as the container's is not here."""
    path: Path = request.param
    text = path.read_text(encoding="utf-8")
    if f"model_repository: {IN_CONTAINER}\n" not in text:
        return path
    copy = tmp_path / path.name
    if (path.parent / "manifests").is_dir():
        shutil.copytree(path.parent / "manifests", tmp_path / "manifests")
    for model in yaml.safe_load(text)["models"]:
        (tmp_path / "models" / model).mkdir(parents=True)
    copy.write_text(text.replace(f": {IN_CONTAINER}\n", f": {tmp_path / 'models'}\n"), encoding="utf-8")
    return copy


@pytest.mark.parametrize("readable", SETTINGS, indirect=True, ids=lambda path: path.parent.name)
def test_the_settings_of_an_example_are_valid(readable: Path) -> None:
    result = CliRunner().invoke(cli.app, ["validate", str(readable)])
    assert (result.exit_code, " is valid: " in result.output) == (0, True), result.output


def test_every_example_has_settings_and_a_short_page_that_the_readme_names() -> None:
    assert {path.parent for path in SETTINGS} == set(FOLDERS)
    overview = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        page = folder / "README.md"
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 25, page
        assert f"({folder.name}/README.md)" in overview
    assert "(examples/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ensemble_has_the_members_that_the_settings_scale() -> None:
    config = load_settings(EXAMPLES / "ensemble" / "themis.yaml")
    text = (EXAMPLES / "ensemble" / "models" / "video-chain" / "config.pbtxt").read_text(encoding="utf-8")
    assert set(re.findall(r'model_name: "(.+)"', text)) == set(config.models) == {*config.pipelines[0].stages}
    assert 'name: "video-chain"' in text


def test_the_units_and_their_settings_agree() -> None:
    config = load_settings(EXAMPLES / "systemd" / "themis.yaml")
    unit = (ROOT / "deploy" / "themis-envoy.service").read_text(encoding="utf-8")
    assert f"-c {config.envoy.directory / 'envoy.json'} " in unit
    assert not config.envoy.managed
    assert "run -c /etc/themis/themis.yaml" in (ROOT / "deploy" / "themis.service").read_text(encoding="utf-8")


def test_the_compose_file_mounts_what_the_image_and_the_settings_expect() -> None:
    """Its structure; where Docker Compose is installed, Compose reads it, too."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    themis, triton = services["themis"], services["triton"]
    assert all(service["network_mode"] == service["pid"] == "host" for service in services.values())
    assert (COMPOSE.parent / themis["build"] / "Dockerfile").is_file()
    assert f"ARG TRITON_IMAGE={triton['image']}\n" in image
    assert "\nUSER 10001\n" in image.partition("RUN ")[2]
    mounted = next(volume.split(":")[1] for volume in themis["volumes"] if volume.startswith("./themis.yaml:"))
    assert f'CMD ["run", "-c", "{mounted}"]' in image
    settings = yaml.safe_load((COMPOSE.parent / "themis.yaml").read_text(encoding="utf-8"))
    assert f"themis-state:{settings['state_directory']}" in themis["volumes"]
    for service in services.values():
        assert any(volume.endswith(f":{IN_CONTAINER}:ro") for volume in service["volumes"])
    assert f"--model-repository={settings['launch']['model_repository']}" in triton["command"]
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        return
    read = [docker, "compose", "-f", str(COMPOSE), "config", "--quiet"]
    ended = subprocess.run(
        read, env={"MODELS": "/models", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


def test_the_manifests_are_valid_and_agree_with_each_other() -> None:
    """By Kubernetes' own schemas."""
    folder = EXAMPLES / "kubernetes" / "manifests"
    objects = [each for path in sorted(folder.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    for each in objects:
        if each["kind"] == "ScaledObject":  # KEDA's, without a schema here
            continue
        kubernetes_validate.validate(each, "1.37", strict=True)
    by_kind = {each["kind"]: each for each in objects if each.get("metadata", {}).get("name") != "triton"}
    (scaled,) = (each["spec"] for each in objects if each["kind"] == "ScaledObject")
    settings = yaml.safe_load((folder.parent / "themis.yaml").read_text(encoding="utf-8"))
    pods, spec = settings["launch"]["kubernetes"], by_kind["Deployment"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for container in spec["containers"] for mount in container["volumeMounts"]}
    assert spec["serviceAccountName"] == by_kind["ServiceAccount"]["metadata"]["name"] == by_kind["RoleBinding"]["subjects"][0]["name"]
    assert by_kind["Deployment"]["metadata"]["name"] == pods["owner_deployment"]
    assert {each.get("metadata", {}).get("namespace", pods["namespace"]) for each in objects} == {pods["namespace"]}
    assert (mounts["state"], mounts["models"]) == (settings["state_directory"], settings["launch"]["model_repository"])
    assert f"{mounts['key']}/key" == pods["key_file"]
    granted = {(resource, verb) for rule in by_kind["Role"]["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    pod_verbs = {("pods", verb) for verb in ("get", "list", "watch", "create", "delete")}
    assert scaled["maxReplicaCount"] == pods["pods"]
    lease_verbs = {("leases", verb) for verb in ("get", "create", "update")}
    assert granted == pod_verbs | lease_verbs | {("pods/resize", "patch"), ("pods/log", "get"), ("deployments", "get")}
