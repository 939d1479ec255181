"""Settings: the sample is valid, and all errors of a file are reported at once, each with its place, expected value and fix."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from themis_triton.core.address import Address
from themis_triton.core.config import Mode, Placement, PlanningConfig, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide.rules import build_rules
from themis_triton.settings import load_settings, problems, reference_rows
from themis_triton.settings.kinds import DEVICE_WORDS, ModelName
from themis_triton.settings.policy import PlanningSettings, PolicySettings
from themis_triton.settings.servers import LaunchSettings
from themis_triton.settings.starter import starter

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "config" / "themis.yaml"

POLICY_KEYS = ", ".join(PolicySettings.model_fields)
MIG = "MIG-41b3f7c1-95a8-51ad-a2a2-4b6ef9d0a5b2"
GOOD = """\
mode: active
state_directory: state
servers:
  first:
    grpc: 127.0.0.1:8001
    http: 127.0.0.1:8000
    metrics: 127.0.0.1:8002
    device: gpu:0
launch:
  slots: [cpu:0, {device: gpu:0, name: half, memory: 20GiB}]
  model_repository: models
envoy:
  grpc_listen: 127.0.0.1:9001
  http_listen: 127.0.0.1:9000
  admin: 127.0.0.1:9901
models:
  detector:
    instances: [1, 4]
    max_batch: 4
    profile:
      surface: {form: contention, alpha_ms: 4, beta_ms: 8, gamma_ms: 4, zeta_ms: 20}
      instance_memory: 512MiB
  classifier:
    profile: classifier.yaml
pipelines:
  video:
    stages: [detector, classifier]
    slo_ms: 300
prices:
  server: 10
policy:
  name: themis
status:
  address: 127.0.0.1:9180
"""
PROFILE = """\
table:
  batches: [1, 8]
  instances: [1, 8]
  latency_ms: [[18, 46], [74, 214]]
instance_init_s: 0.5
"""


def write(folder: Path, text: str = GOOD, profile: str = PROFILE) -> Path:
    """The settings, with a profile file and a model repository beside them."""
    for model in ("detector", "classifier"):
        (folder / "models" / model).mkdir(parents=True, exist_ok=True)
    (folder / "classifier.yaml").write_text(profile, encoding="utf-8")
    path = folder / "themis.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def messages(path: Path) -> list[str]:
    """The problems, with the folder left out."""
    return [str(problem).replace(f"{path.parent}/", "") for problem in problems(path)]


# Each: what is changed in the good file, and the whole message that it must give. At most one thing is wrong in each.
BAD = {
    "unknown key": (
        ("state_directory: state", "state_directori: state"),
        (
            "themis.yaml:2:1: state_directori: unknown key: "
            "expected one of models, pipelines, calls, servers, launch, envoy, prices, policy, policies, planning, mode, state_directory, "
            "status, standby, retention, allow_stale_profiles. Fix: did you mean `state_directory`?"
        ),
    ),
    "unknown key without a near match": (
        ("    device: gpu:0\n", "    device: gpu:0\n    colour: red\n"),
        (
            "themis.yaml:9:5: servers.first.colour: unknown key: "
            "expected one of grpc, http, metrics, tls, proxy_tls, device, devices, "
            "model_control_key, model_repository, model_config_name, zone. Fix: remove it"
        ),
    ),
    "paper's form without the rule of cores": (
        ("form: contention", "form: paper"),
        (
            "themis.yaml:21:23: models.detector.profile.surface.form: paper needs planning.throughput: cores: "
            "expected contention or cores. Fix: set `planning.throughput: cores`"
        ),
    ),
    "factor of another form": (
        ("zeta_ms: 20}", "zeta_ms: 20, m: 1.1}"),
        (
            "themis.yaml:21:16: models.detector.profile.surface: form contention has no m or m_b: "
            "expected m and m_b with form paper only. Fix: multiply the constants by them instead"
        ),
    ),
    "unknown placement": (
        ("mode: active", "mode: active\nplanning: {placement: seperate}"),
        ("themis.yaml:2:23: planning.placement: seperate is invalid: expected colocated or separate. Fix: did you mean separate?"),
    ),
    "key without its unit": (
        ("slo_ms: 300", "slo_ms: 300\n    slo: 300"),
        (
            "themis.yaml:29:5: pipelines.video.slo: unknown key: "
            "expected one of stages, model, slo_ms, percentile, weight, overload, classes. Fix: write `slo_ms: 300`"
        ),
    ),
    "key with another unit": (
        ("slo_ms: 300", "slo_ms: 300\n    slo_s: 0.3"),
        (
            "themis.yaml:29:5: pipelines.video.slo_s: unknown key: "
            "expected one of stages, model, slo_ms, percentile, weight, overload, classes. Fix: write `slo_ms: 300`"
        ),
    ),
    "value with a unit": (
        ("slo_ms: 300", 'slo_ms: "0.3s"'),
        ('themis.yaml:28:13: pipelines.video.slo_ms: "0.3s" is invalid: expected a number > 0, in ms. Fix: write 300; the key is in ms'),
    ),
    "number in quotes": (
        ("slo_ms: 300", 'slo_ms: "300"'),
        ('themis.yaml:28:13: pipelines.video.slo_ms: "300" is invalid: expected a number > 0, in ms. Fix: write 300 without quotes'),
    ),
    "wrong type": (
        ("max_batch: 4", "max_batch: four"),
        ("themis.yaml:19:16: models.detector.max_batch: four is invalid: expected an integer from 1 to 512. Fix: write a number"),
    ),
    "fraction where a count belongs": (
        ("max_batch: 4", "max_batch: 4.5"),
        ("themis.yaml:19:16: models.detector.max_batch: 4.5 is invalid: expected an integer from 1 to 512. Fix: write an integer"),
    ),
    "exponent that YAML reads as a text": (
        ("slo_ms: 300", "slo_ms: 3e2"),
        ("themis.yaml:28:13: pipelines.video.slo_ms: 3e2 is invalid: expected a number > 0, in ms. Fix: write 300; the key is in ms"),
    ),
    "infinite": (
        ("slo_ms: 300", "slo_ms: .inf"),
        ("themis.yaml:28:13: pipelines.video.slo_ms: .inf is invalid: expected a number > 0, in ms. Fix: write a finite number"),
    ),
    "missing key": (
        ("    metrics: 127.0.0.1:8002\n", ""),
        (
            "themis.yaml:4:3: servers.first.metrics: required key is missing: "
            "expected host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001. Fix: add `metrics:` here"
        ),
    ),
    "stage without a model": (
        ("[detector, classifier]", "[detector, clasifier]"),
        (
            "themis.yaml:27:24: pipelines.video.stages[1]: unknown model clasifier: "
            "expected a model defined under `models:`, one of detector, classifier. Fix: did you mean classifier?"
        ),
    ),
    "stage twice": (
        ("[detector, classifier]", "[detector, detector]"),
        (
            "themis.yaml:27:24: pipelines.video.stages[1]: detector is a stage already: "
            "expected each model once in a pipeline. Fix: remove one of the two"
        ),
    ),
    "stage without its model": (
        ("[detector, classifier]", "[detector, {per_request: 4}]"),
        ("themis.yaml:27:24: pipelines.video.stages[1].model: required key is missing: expected a string. Fix: add `model:` here"),
    ),
    "requests of a stage": (
        ("[detector, classifier]", "[detector, {model: classifier, per_request: 0}]"),
        (
            "themis.yaml:27:57: pipelines.video.stages[1].per_request: 0 is invalid: expected a number > 0 and ≤ 1000. "
            "Fix: write a number within these bounds"
        ),
    ),
    "a largest number of requests below the mean": (
        ("[detector, classifier]", "[detector, {model: classifier, per_request: 4, max_per_request: 3}]"),
        (
            "themis.yaml:27:24: pipelines.video.stages[1]: `max_per_request` is 3, below `per_request`: expected at least 4. "
            "Fix: raise `max_per_request`, or lower `per_request`, which is the mean"
        ),
    ),
    "sequential requests that miss the SLO": (
        ("[detector, classifier]", "[detector, {model: classifier, per_request: 40, sequential: true}]"),
        (
            "themis.yaml:28:13: pipelines.video.slo_ms: 300 is invalid: expected at least the service time of one request: "
            "detector 36 + classifier 720 = 756 ms, divided by 0.95 for policy.slo_margin_fraction = 795.789 ms. "
            "Fix: raise slo_ms, or serve faster models"
        ),
    ),
    "stages and model": (
        ("slo_ms: 300", "slo_ms: 300\n    model: detector"),
        (
            "themis.yaml:27:5: pipelines.video: both `stages` and `model` are set: expected one of `stages` and `model`. "
            "Fix: write `stages: [first, second]`, or `model: name` for a single model, an ensemble, or a model that calls others"
        ),
    ),
    "objective out of reach": (
        ("slo_ms: 300", "slo_ms: 53.9"),
        (
            "themis.yaml:28:13: pipelines.video.slo_ms: 53.9 is invalid: "
            "expected at least the service time of one request: detector 36 + classifier 18 = 54 ms, divided by 0.95 for "
            "policy.slo_margin_fraction = 56.8421 ms. Fix: raise slo_ms, or serve faster models"
        ),
    ),
    "percentile out of range": (
        ("slo_ms: 300", "slo_ms: 300\n    percentile: 0.99"),
        (
            "themis.yaml:29:17: pipelines.video.percentile: 0.99 is invalid: expected a number ≥ 50 and < 100. "
            "Fix: write a number within these bounds"
        ),
    ),
    "min above max": (
        ("instances: [1, 4]", "instances: [4, 1]"),
        "themis.yaml:18:16: models.detector.instances: min 4 > max 1: expected min ≤ max. Fix: write [1, 4]",
    ),
    "bounds of three": (
        ("instances: [1, 4]", "instances: [1, 2, 4]"),
        (
            "themis.yaml:18:16: models.detector.instances: a list of 3 is invalid: "
            "expected [min, max] of 1 to 64, or a mapping with `min` and `max`. Fix: write [min, max]"
        ),
    ),
    "no instance": (
        ("instances: [1, 4]", "instances: [0, 4]"),
        (
            "themis.yaml:18:17: models.detector.instances.min: 0 is invalid: expected an integer ≥ 1. "
            "Fix: write a number within these bounds"
        ),
    ),
    "more instances than were measured": (
        ("profile: classifier.yaml", "profile: classifier.yaml\n    instances: [1, 9]"),
        (
            "themis.yaml:25:16: models.classifier.instances: 9 is not in the profile: "
            "expected at most 8, the largest number in the table. Fix: measure further, or lower `instances`"
        ),
    ),
    "surface below zero": (
        ("zeta_ms: 20}", "zeta_ms: -20}"),
        (
            "themis.yaml:21:16: models.detector.profile.surface: l(1, 1) = -4 ms: "
            "expected more than 0 ms for batches of 1 to 4 and 1 to 24 busy instances. Fix: measure again, or give a table"
        ),
    ),
    "unknown form": (
        ("form: contention", "form: contension"),
        (
            "themis.yaml:21:23: models.detector.profile.surface.form: contension is invalid: "
            "expected one of contention, cores, paper. Fix: did you mean contention?"
        ),
    ),
    "missing profile file": (
        ("profile: classifier.yaml", "profile: $HOME/classifier.yaml"),
        (
            "themis.yaml:24:14: models.classifier.profile: $HOME/classifier.yaml does not exist: "
            "expected a mapping with `table` or `surface`, or the path of a file with one. "
            "Fix: measure it with `themis profile classifier -c themis.yaml`, or correct the path, which starts at FOLDER "
            "(environment variables and ~ are not expanded)"
        ),
    ),
    "size without a known unit": (
        ("instance_memory: 512MiB", "instance_memory: 512 apples"),
        (
            "themis.yaml:22:24: models.detector.profile.instance_memory: 512 apples is invalid: "
            "expected a size in bytes or with a unit, such as 512MiB. Fix: write an integer and B, KiB, MiB or GiB"
        ),
    ),
    "address without a port": (
        ("grpc: 127.0.0.1:8001", "grpc: triton"),
        (
            "themis.yaml:5:11: servers.first.grpc: triton is invalid: "
            "expected host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001. "
            "Fix: add the port, such as triton:8001"
        ),
    ),
    "address with a scheme": (
        ("http: 127.0.0.1:8000", "http: http://127.0.0.1:8000/"),
        (
            "themis.yaml:6:11: servers.first.http: http://127.0.0.1:8000/ is invalid: "
            "expected host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001. "
            "Fix: remove the scheme: write 127.0.0.1:8000"
        ),
    ),
    "address with a scheme for TLS": (
        ("grpc: 127.0.0.1:8001", "grpc: grpcs://triton:8001"),
        (
            "themis.yaml:5:11: servers.first.grpc: grpcs://triton:8001 is invalid: "
            "expected host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001. "
            "Fix: remove the scheme: write triton:8001, and for TLS set `tls: {ca: FILE}` beside it"
        ),
    ),
    "TLS file that is not there": (
        ("grpc: 127.0.0.1:8001", "grpc: 127.0.0.1:8001\n    tls: {ca: ca.pem}"),
        (
            "themis.yaml:6:15: servers.first.tls.ca: ca.pem does not exist: expected the path of a PEM file. "
            "Fix: correct the path, which starts at FOLDER"
        ),
    ),
    "TLS certificate without its key": (
        ("grpc: 127.0.0.1:8001", "grpc: 127.0.0.1:8001\n    tls: {ca: themis.yaml, certificate: themis.yaml}"),
        (
            "themis.yaml:6:10: servers.first.tls: `certificate` is set without `key`: expected both or neither. "
            "Fix: set `key` too, or remove `certificate`"
        ),
    ),
    "port out of range": (
        ("metrics: 127.0.0.1:8002", "metrics: 127.0.0.1:80020"),
        (
            "themis.yaml:7:14: servers.first.metrics: 127.0.0.1:80020 is invalid: "
            "expected host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001. Fix: write host:port"
        ),
    ),
    "name to listen on": (
        ("grpc_listen: 127.0.0.1:9001", "grpc_listen: localhost:9001"),
        (
            "themis.yaml:13:16: envoy.grpc_listen: localhost:9001 is invalid: "
            "expected IP:port with a port of 1 to 65535, such as 127.0.0.1:9001 or 0.0.0.0:9001. "
            "Fix: write 127.0.0.1:9001; a listener needs an IP address, not a name"
        ),
    ),
    "two listeners on one port": (
        ("http_listen: 127.0.0.1:9000", "http_listen: 0.0.0.0:9001"),
        (
            "themis.yaml:14:16: envoy.http_listen: 0.0.0.0:9001 conflicts with envoy.grpc_listen (line 13): "
            "expected each address once. Fix: choose another port"
        ),
    ),
    "a server's address taken by a default": (
        ("metrics: 127.0.0.1:8002", "metrics: 127.0.0.1:8001"),
        (
            "themis.yaml:7:14: servers.first.metrics: 127.0.0.1:8001 conflicts with servers.first.grpc (line 5): "
            "expected each address once. Fix: choose another port"
        ),
    ),
    "admin for everyone": (
        ("admin: 127.0.0.1:9901", "admin: 0.0.0.0:9901"),
        (
            "themis.yaml:15:10: envoy.admin: 0.0.0.0:9901 is reachable from other machines: expected a loopback address. "
            "Fix: write 127.0.0.1:9901, or set `envoy.allow_non_loopback: true` (any client of this address can stop Envoy)"
        ),
    ),
    "status for everyone": (
        ("address: 127.0.0.1:9180", "address: 0.0.0.0:9180"),
        (
            "themis.yaml:34:12: status.address: 0.0.0.0:9180 is reachable from other machines: "
            "expected a loopback address. "
            "Fix: write 127.0.0.1:9180, or set `status.allow_non_loopback: true` (any client of this address can read what is "
            "served)"
        ),
    ),
    "slot of no device": (
        ("slots: [cpu:0,", "slots: [cpu0,"),
        (
            "themis.yaml:10:11: launch.slots[0].device: cpu0 is invalid: "
            "expected gpu:N (N is NVML's index), gpu:UUID (of a GPU or a MIG device, from `nvidia-smi -L`) or cpu:N, such as gpu:0. "
            "Fix: write cpu:0"
        ),
    ),
    "device of a UUID without its kind": (
        ("device: gpu:0\nlaunch", f"device: {MIG}\nlaunch"),
        (
            f"themis.yaml:8:13: servers.first.device: {MIG} is invalid: "
            "expected gpu:N (N is NVML's index), gpu:UUID (of a GPU or a MIG device, from `nvidia-smi -L`) or cpu:N, such as gpu:0. "
            f"Fix: write gpu:{MIG}"
        ),
    ),
    "a server on a GPU and a CPU": (
        ("device: gpu:0\nlaunch", "devices: [gpu:0, cpu:0]\nlaunch"),
        (
            "themis.yaml:8:22: servers.first.devices[1]: cpu:0 and gpu:0 cannot belong to one server: "
            "expected a device of the kind of gpu:0. Fix: name it as gpu:0 is named, or give it to another server"
        ),
    ),
    "a server on two MIG devices": (
        ("device: gpu:0\nlaunch", f"devices: [gpu:0, gpu:{MIG}]\nlaunch"),
        (
            f"themis.yaml:8:22: servers.first.devices[1]: gpu:{MIG} beside gpu:0: a server can use just one device if that is MIG: "
            "expected whole GPUs. Fix: name whole GPUs, or start one server for each MIG device"
        ),
    ),
    "slots of two kinds with a reach": (
        ("name: half, memory: 20GiB}]", "name: half, memory: 20GiB}]\n  reach: [cpu:1]"),
        (
            "themis.yaml:10:18: launch.slots[1]: gpu:0 and cpu:0 cannot belong to one server: "
            "expected a device of the kind of cpu:0. Fix: name it as cpu:0 is named, or give it to another server"
        ),
    ),
    "a reach of another kind": (
        ("slots: [cpu:0, {device: gpu:0, name: half, memory: 20GiB}]", "slots: [cpu:0]\n  reach: [cpu:1, gpu:1]"),
        (
            "themis.yaml:11:18: launch.reach[1]: gpu:1 and cpu:0 cannot belong to one server: "
            "expected a device of the kind of cpu:0. Fix: name it as cpu:0 is named, or give it to another server"
        ),
    ),
    "slot with the name of a server": (
        ("name: half", "name: first"),
        (
            "themis.yaml:10:40: launch.slots[1].name: first is the name of an adopted server too: "
            "expected each name once. Fix: rename one of the two"
        ),
    ),
    "negative price": (
        ("  server: 10", "  server: -10"),
        ("themis.yaml:30:11: prices.server: -10 is invalid: expected a number ≥ 0. Fix: write a number within these bounds"),
    ),
    "unknown policy": (
        ("name: themis", "name: temis"),
        (
            "themis.yaml:32:9: policy.name: temis is invalid: "
            "expected one of themis, themis-paper, horizontal, vertical, inferline, static, queue-time, concurrency, vertical-themis, "
            "oracle. Fix: did you mean themis?"
        ),
    ),
    "a policy for simulations": (
        ("name: themis", "name: oracle"),
        (
            "themis.yaml:32:9: policy.name: oracle is for simulations only, because it knows the arrivals in advance: expected themis, "
            "themis-paper, horizontal, vertical, inferline, static, queue-time, concurrency, vertical-themis. "
            "Fix: write one of these, or simulate it: `themis simulate --policies oracle`"
        ),
    ),
    "a key of a section that stands above it": (
        ("name: themis", "name: themis\n  burst_window_s: 0.5"),
        "themis.yaml:33:3: policy.burst_window_s: unknown key: expected one of KEYS. Fix: move it into the section `demand`",
    ),
    "windows in the wrong order": (
        ("name: themis", "name: themis\n  demand: {burst_window_s: 0.5}"),
        (
            "themis.yaml:33:28: policy.demand.burst_window_s: rate_window_s 1 > burst_window_s 0.5: "
            "expected rate_window_s ≤ burst_window_s. Fix: lower rate_window_s or raise burst_window_s"
        ),
    ),
    "refusals that would hit another pipeline": (
        ("slo_ms: 300\n", "slo_ms: 300\n    overload: shed\n  other:\n    stages: [classifier, detector]\n    slo_ms: 300\n"),
        (
            "themis.yaml:29:15: pipelines.video.overload: shed cannot tell requests of video from those of other: clients call detector "
            "for both: expected a first model that clients call for this pipeline alone. Fix: use queue, or serve a copy of the model"
        ),
    ),
    "late requests of a model without batches served last": (
        (
            ".yaml\npipelines:\n",
            ".yaml\n    max_batch: 1\npipelines:\n  other:\n    model: classifier\n    slo_ms: 300\n    overload: deprioritize\n",
        ),
        (
            "themis.yaml:30:15: pipelines.other.overload: deprioritize has no effect on models that form no batches: "
            "expected a stage with a max_batch of at least 2. Fix: use shed or queue"
        ),
    ),
    "unknown mode": (
        ("mode: active", "mode: passive"),
        "themis.yaml:1:7: mode: passive is invalid: expected active or advisory. Fix: did you mean active?",
    ),
    "missing repository": (
        ("model_repository: models", "model_repository: modles"),
        (
            "themis.yaml:11:21: launch.model_repository: modles is not a folder: expected a Triton model repository. "
            "Fix: correct the path, which starts at FOLDER"
        ),
    ),
    "model that is not in the repository": (
        ("  classifier:\n", "  recogniser:\n    profile: classifier.yaml\n  classifier:\n"),
        (
            "themis.yaml:23:3: models.recogniser: models has no folder recogniser: "
            "expected a model that launched servers can load. Fix: add recogniser there, or remove it from `models:`"
        ),
    ),
    "model repository in a cloud": (
        ("model_repository: models", "model_repository: s3://bucket/models"),
        (
            "themis.yaml:11:21: launch.model_repository: s3:/bucket/models is not a folder: expected a Triton model repository. "
            "Fix: name a copy or a mount on this machine"
        ),
    ),
    "name of model configurations among the arguments": (
        ("launch:\n", "launch:\n  arguments: [--model-config-name=b]\n"),
        (
            "themis.yaml:10:14: launch.arguments: --model-config-name is no argument of launched servers: expected other arguments. "
            "Fix: set `launch.model_config_name` in its place; the files that Themis writes for a launched server are made from it"
        ),
    ),
    "argument of launched servers that Themis sets": (
        ("launch:\n", "launch:\n  arguments: [--log-verbose=1, --http-port, '8000']\n"),
        (
            "themis.yaml:10:14: launch.arguments: --http-port is given by Themis itself to each launched server: expected other arguments. "
            "Fix: remove --http-port; repositories and devices of launched servers have keys in `launch`"
        ),
    ),
    "model name that no folder has": (
        ("  classifier:\n", "  ..: {profile: classifier.yaml}\n  classifier:\n"),
        (
            'themis.yaml:23:3: models...: name ".." is invalid: '
            "expected the name of a folder in a model repository, without '/' and control characters, of at most 255 bytes. Fix: rename it"
        ),
    ),
    "name that no route can carry": (
        ("  first:\n", "  first server:\n"),
        (
            'themis.yaml:4:3: servers.first server: name "first server" is invalid: '
            "expected letters, digits, '-', '_' and '.'. Fix: rename it"
        ),
    ),
    "section without keys": (
        ("prices:\n  server: 10\n", "prices:\n"),
        (
            "themis.yaml:29:8: prices: no value: "
            "expected a mapping with `server`, `instance`, `lost_request`, `grow_risk`, `shrink_risk`, `rebatch_risk`, "
            "`launch_risk`, `retire_risk`. Fix: write its keys on the lines below, indented, or remove this key"
        ),
    ),
    "duplicate key": (
        ("slo_ms: 300", "slo_ms: 300\n    slo_ms: 400"),
        ("themis.yaml:29:5: pipelines.video.slo_ms: duplicate of line 28: expected each name once. Fix: rename or remove one of the two"),
    ),
    "duplicate name": (
        ("prices:", "  video:\n    model: classifier\n    slo_ms: 100\nprices:"),
        ("themis.yaml:29:3: pipelines.video: duplicate of line 26: expected each name once. Fix: rename or remove one of the two"),
    ),
    "number as a key": (
        ("  first:\n", "  1:\n"),
        "themis.yaml:4:3: servers.1: key 1 is not a string: expected a string. Fix: put the key in quotes",
    ),
    "date that does not exist": (
        ("    slo_ms: 300", "    slo_ms: 2024-13-45"),
        "themis.yaml:28:13: pipelines.video.slo_ms: 2024-13-45 is invalid: expected a number > 0, in ms. Fix: write a number in ms",
    ),
    "tab": (
        ("    slo_ms: 300", "	slo_ms: 300"),
        (
            "themis.yaml:28:1: YAML syntax error (while scanning for the next token: found character '\\t' that cannot start any "
            "token): expected valid YAML. Fix: replace the tab on this line with spaces"
        ),
    ),
    "bracket left open": (
        ("slots: [cpu:0, {device: gpu:0, name: half, memory: 20GiB}]", "slots: [cpu:0"),
        (
            "themis.yaml:11:19: YAML syntax error (while parsing a flow sequence that starts on line 10: "
            "expected ',' or ']', but got ':'): expected valid YAML. Fix: correct the YAML here or on the line above"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gives_its_message(case: str, tmp_path: Path) -> None:
    (old, new), expected = BAD[case]
    path = write(tmp_path, changed(old, new))
    assert messages(path) == [expected.replace("FOLDER", str(tmp_path)).replace("KEYS", POLICY_KEYS)]
    with pytest.raises(SettingsError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: 1 error\n{path}:")


@pytest.mark.parametrize(
    ("messages_seen", "refused"), [("max_batch_size: 2\n", True), ("name: 'x'\n max_batch_size:4", False), ("", False)]
)
def test_batches_larger_than_the_model_takes_are_named(messages_seen: str, refused: bool, tmp_path: Path) -> None:
    path = write(tmp_path)
    config = tmp_path / "models" / "detector" / "config.pbtxt"
    config.write_text(messages_seen, encoding="utf-8")
    expected = (
        "themis.yaml:19:16: models.detector.max_batch: 4 is invalid: expected at most 2, "
        "the max_batch_size of models/detector/config.pbtxt. "
        "Fix: lower it, or raise max_batch_size there if the model supports such batches"
    )
    assert messages(path) == ([expected] if refused else [])


# Profile files have their own lines. Each: what is changed in the good profile, and the message.
BAD_PROFILES = {
    "not rectangular": (
        ("[[18, 46], [74, 214]]", "[[18, 46], [74]]"),
        (
            "classifier.yaml:2:3: models.classifier.profile.table: latency_ms has 1 number for batch 8: "
            "expected 2 rows (batches) of 2 numbers (instances). Fix: write one number per instance count"
        ),
    ),
    "a row too few": (
        ("[[18, 46], [74, 214]]", "[[18, 46]]"),
        (
            "classifier.yaml:2:3: models.classifier.profile.table: latency_ms has 1 row: "
            "expected 2 rows (batches) of 2 numbers (instances). Fix: write one row per batch size"
        ),
    ),
    "not positive": (
        ("[[18, 46], [74, 214]]", "[[18, 46], [0, 214]]"),
        (
            "classifier.yaml:4:27: models.classifier.profile.table.latency_ms[1][0]: 0 is invalid: "
            "expected a number > 0, in ms. Fix: write a number within these bounds"
        ),
    ),
    "batches out of order": (
        ("batches: [1, 8]", "batches: [8, 1]"),
        (
            "classifier.yaml:2:3: models.classifier.profile.table: batches [8, 1] is invalid: "
            "expected batches in ascending order from 1. Fix: sort them, and measure 1 too"
        ),
    ),
    "unit in the value": (
        ("instance_init_s: 0.5", "instance_init_s: 500ms"),
        (
            "classifier.yaml:5:18: models.classifier.profile.instance_init_s: 500ms is invalid: "
            "expected a number ≥ 0, in s. Fix: write 0.5; the key is in s"
        ),
    ),
    "broken": (
        ("  instances: [1, 8]", "  instances: 1, 8]: ["),
        (
            "classifier.yaml:3:19: YAML syntax error (mapping values are not allowed here): expected valid YAML. "
            "Fix: correct the YAML here or on the line above"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD_PROFILES)
def test_a_bad_profile_file_gives_its_message(case: str, tmp_path: Path) -> None:
    (old, new), expected = BAD_PROFILES[case]
    assert old in PROFILE
    assert messages(write(tmp_path, profile=PROFILE.replace(old, new))) == [expected]


def test_an_empty_file(tmp_path: Path) -> None:
    assert messages(write(tmp_path, "# nothing but a comment\n")) == [
        (
            "themis.yaml:1:1: file is empty: "
            "expected a mapping with `models`, `pipelines`, `calls`, `servers`, `launch`, `envoy`, `prices`, `policy`, `policies`, "
            "`planning`, `mode`, `state_directory`, `status`, `standby`, `retention`, `allow_stale_profiles`. "
            "Fix: `themis init` writes a file to start from"
        )
    ]


def test_a_list_instead_of_a_mapping(tmp_path: Path) -> None:
    (message,) = messages(write(tmp_path, "- models\n"))
    assert message.startswith("themis.yaml:1:1: a list is invalid: expected a mapping with `models`")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "absent.yaml")
    assert problem.place == str(tmp_path / "absent.yaml")
    assert "No such file" in problem.error


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    path.write_bytes(b"mode: active\nstate_directory: \xff\n")
    assert messages(path) == ["themis.yaml:2: byte 0xff is not UTF-8: expected text in UTF-8. Fix: save the file as UTF-8"]


def test_a_control_character(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "mode: active\nstate_directory: \x07\n"))
    assert (problem.line, problem.error) == (2, "character '\\x07' is invalid")


def test_an_alias_to_itself(tmp_path: Path) -> None:
    result = problems(write(tmp_path, changed("prices:\n  server: 10", "prices: &self\n  server: *self")))
    assert any(problem.error.startswith("alias refers to the mapping") and problem.key == "prices.server" for problem in result)


def test_neither_servers_nor_launch(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("servers:")] + GOOD[GOOD.index("envoy:") :]
    (message,) = messages(write(tmp_path, text))
    assert "neither `servers` nor `launch` is set: expected at least one of them" in message


def test_plans_of_separate_stages_need_no_server(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("servers:")] + GOOD[GOOD.index("envoy:") :] + "planning: {placement: separate, max_servers: 9}\n"
    planning = load_settings(write(tmp_path, text)).planning
    assert planning == PlanningConfig(placement=Placement.SEPARATE, max_servers=9)


def test_prices_of_a_model(tmp_path: Path) -> None:
    text = changed("max_batch: 4", "max_batch: 4\n    server_price: 2\n    instance_price: 18")
    priced, other = (load_settings(write(tmp_path, text)).models[name] for name in ("detector", "classifier"))
    assert (priced.server_price, priced.instance_price, other.server_price, other.instance_price) == (2, 18, None, None)


def test_a_clash_with_a_default_is_shown_at_what_was_written(tmp_path: Path) -> None:
    text = changed("  grpc_listen: 127.0.0.1:9001\n", "").replace("address: 127.0.0.1:9180", "address: 127.0.0.1:9001")
    (message,) = messages(write(tmp_path, text))
    assert message.startswith("themis.yaml:33:12: status.address: 127.0.0.1:9001 conflicts with envoy.grpc_listen: ")


def test_all_errors_of_a_file_come_at_once_and_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = dedent("""\
        mode: passive
        servers:
          first: {grpc: nowhere, http: 127.0.0.1:8000, metrics: 127.0.0.1:8002, device: tpu}
        envoy:
          admin: 0.0.0.0:9901
          colour: red
        models:
          detector:
            instances: [4, 1]
            profile: absent.yaml
          fast:
            profile:
              surface: {form: contention, alpha_ms: 1, beta_ms: 1, gamma_ms: 1, zeta_ms: 97}
        pipelines:
          video:
            stages: [detector, unheard]
            slo_ms: "0.3s"
          quick:
            model: fast
            slo_ms: 99
        prices: {server: -1}
        status: {address: 127.0.0.1:8000}
        """)
    path = write(tmp_path, text)
    assert [(problem.line, problem.key) for problem in problems(path)] == [
        (1, "mode"),
        (3, "servers.first.grpc"),
        (3, "servers.first.device"),
        (5, "envoy.admin"),
        (6, "envoy.colour"),
        (9, "models.detector.instances"),
        (10, "models.detector.profile"),
        (16, "pipelines.video.stages[1]"),
        (17, "pipelines.video.slo_ms"),
        (20, "pipelines.quick.slo_ms"),
        (21, "prices.server"),
        (22, "status.address"),
    ]
    with pytest.raises(SettingsError, match="12 errors") as error:
        load_settings(path)
    assert len(str(error.value).splitlines()) == 13
    assert error.value.exit_code == 2


def test_the_good_file_becomes_the_configuration(tmp_path: Path) -> None:
    config = load_settings(write(tmp_path))
    assert config.mode is Mode.ACTIVE
    assert config.policy == PolicyConfig(name=PolicyName.THEMIS)
    assert config.state_directory == tmp_path / "state"
    assert config.envoy.directory == tmp_path / "state" / "envoy"
    assert config.launch is not None
    assert [(slot.name, slot.device, slot.memory_bytes) for slot in config.launch.slots] == [
        ("cpu-0", "cpu:0", None),
        ("half", "gpu:0", 20 * 2**30),
    ]
    assert config.launch.model_repository == tmp_path / "models"
    assert config.models["detector"].profile.instance_memory_bytes == 512 * 2**20
    assert config.pipelines[0].stages == ("detector", "classifier")
    assert config.servers[0].grpc_address == Address("127.0.0.1", 8001)


def test_a_surface_becomes_a_table_over_all_that_can_be_busy_on_a_device(tmp_path: Path) -> None:
    table = load_settings(write(tmp_path)).models["detector"].profile.table
    # gpu:0 carries the adopted server and a slot, each with up to 4 detectors and 8 classifiers.
    assert table.instances == tuple(range(1, 25))
    assert table.batches == (1, 2, 3, 4)
    assert table.latency_ms[0][0] == 4 + 8 + 4 + 20
    assert table.latency_ms[2][23] == 4 * 3 * 24 + 8 * 3 + 4 * 24 + 20


def test_the_form_of_cores_gains_from_cores(tmp_path: Path) -> None:
    text = changed(
        "form: contention, alpha_ms: 4, beta_ms: 8, gamma_ms: 4, zeta_ms: 20",
        "form: cores, alpha_ms: 40, beta_ms: 8, gamma_ms: 4, zeta_ms: 20",
    )
    table = load_settings(write(tmp_path, text)).models["detector"].profile.table
    assert table.latency_ms[1][3] == 40 * 2 / 4 + 8 * 2 + 4 / 4 + 20


def test_a_measured_table_stays_as_it_was_measured(tmp_path: Path) -> None:
    table = load_settings(write(tmp_path)).models["classifier"].profile.table
    assert (table.batches, table.instances, table.latency_ms) == ((1, 8), (1, 8), ((18.0, 46.0), (74.0, 214.0)))


def test_an_objective_equal_to_the_fastest_service_time_and_the_margin_is_allowed(tmp_path: Path) -> None:
    text = changed("slo_ms: 300", "slo_ms: 60").replace("  name: themis\n", "  name: themis\n  slo_margin_fraction: 0.1\n")
    assert load_settings(write(tmp_path, text)).pipelines[0].slo_ms == 60
    with pytest.raises(SettingsError, match=r"divided by 0\.9 for policy\.slo_margin_fraction = 60 ms"):
        load_settings(write(tmp_path, text.replace("slo_ms: 60", "slo_ms: 59.9")))


def test_other_ways_to_write_the_same(tmp_path: Path) -> None:
    text = changed("instances: [1, 4]", "instances: {max: 4}").replace("slo_ms: 300", "slo_ms: 300.0")
    text = text.replace(
        "[cpu:0, {device: gpu:0, name: half, memory: 20GiB}]", "\n  - cpu:0\n  - device: gpu:0\n    name: half\n    memory: 21474836480"
    )
    assert load_settings(write(tmp_path, text)) == load_settings(write(tmp_path))


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = changed("  detector:\n", "  detector: &shared\n").replace("    profile: classifier.yaml", "    <<: *shared\n    max_batch: 2")
    config = load_settings(write(tmp_path, text))
    assert (config.models["classifier"].max_batch, config.models["classifier"].max_instances) == (2, 4)


def test_slots_that_share_a_device_get_names_of_their_own(tmp_path: Path) -> None:
    text = changed("[cpu:0, {device: gpu:0, name: half, memory: 20GiB}]", "[cpu:0, cpu:0, {device: cpu:1, name: cpu-0-2}, cpu:0]")
    launch = load_settings(write(tmp_path, text)).launch
    assert launch is not None
    assert [slot.name for slot in launch.slots] == ["cpu-0", "cpu-0-3", "cpu-0-2", "cpu-0-4"]


def test_other_machines_are_let_in_when_told_so(tmp_path: Path) -> None:
    text = changed("admin: 127.0.0.1:9901", "admin: 0.0.0.0:9901\n  allow_non_loopback: true")
    text = text.replace("address: 127.0.0.1:9180", "address: 0.0.0.0:9180\n  allow_non_loopback: true")
    assert load_settings(write(tmp_path, text)).status.address == Address.parse("0.0.0.0:9180")


def test_one_port_on_two_machines_is_no_clash(tmp_path: Path) -> None:
    second = "  second: {grpc: 10.0.0.2:8001, http: 10.0.0.2:9000, metrics: 10.0.0.2:8002, device: gpu:1}\nlaunch:"
    assert problems(write(tmp_path, changed("launch:", second))) == []


def test_the_starter_is_valid_wherever_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    path.write_text(starter(), encoding="utf-8")
    config = load_settings(path)
    assert isinstance(config, ThemisConfig)
    assert (list(config.models), [pipeline.slo_ms for pipeline in config.pipelines]) == (["my-model"], [100])
    assert (config.mode, config.launch) == (Mode.ADVISORY, None)
    assert config.policy == PolicyConfig()
    assert config.planning == PlanningConfig()


def test_the_starters_comments_are_the_defaults(tmp_path: Path) -> None:
    """With every commented key in force, but `launch`, the configuration is the same."""
    text = starter()
    launch = text[text.index("# launch:") : text.index("\n\n", text.index("# launch:"))]
    text = re.sub(r"^( *)# ( *\w+:(?: .*# .*)?)$", r"\1\2", text.replace(launch, ""), flags=re.MULTILINE)
    assert "\nenvoy:\n  grpc_listen: 127.0.0.1:9001 " in text
    assert "\n    percentile: 99 " in text
    path = tmp_path / "themis.yaml"
    path.write_text(text, encoding="utf-8")
    in_force = load_settings(path)
    path.write_text(starter(), encoding="utf-8")
    assert in_force == load_settings(path)


def test_the_starters_launch_section_is_the_default_one(tmp_path: Path) -> None:
    text = starter()
    launch = text[text.index("# launch:") : text.index("\n\n", text.index("# launch:"))]
    written = yaml.safe_load(re.sub(r"^# ", "", launch, flags=re.MULTILINE))["launch"]
    assert set(written) == set(LaunchSettings.model_fields) - {"kubernetes", "ray", "slurm", "node_types", "tls"}
    assert LaunchSettings.model_validate(written) == LaunchSettings.model_validate({"slots": written["slots"]})


def test_the_shipped_settings_are_those_of_the_demo() -> None:
    config = load_settings(SHIPPED)
    assert [pipeline.slo_ms for pipeline in config.pipelines] == [300, 500, 700]
    assert config.launch is not None
    assert [slot.device for slot in config.launch.slots] == ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
    assert config.policy == PolicyConfig()
    assert config.planning == PlanningConfig()


def test_the_shipped_surfaces_are_those_of_the_emulated_models() -> None:
    for name, model in load_settings(SHIPPED).models.items():
        text = (REPOSITORY / "model_repository" / name / "config.pbtxt").read_text(encoding="utf-8")
        written = {key: float(text.split(f'key: "{key}" value {{ string_value: "')[1].split('"')[0]) for key in EMULATED}
        table = model.profile.table
        first = sum(written[key] for key in ("alpha_ms", "beta_ms", "gamma_ms", "zeta_ms"))
        assert table.latency_ms[0][0] == pytest.approx(first), name
        assert table.latency_ms[1][0] == pytest.approx(first + written["alpha_ms"] + written["beta_ms"]), name
        assert table.latency_ms[0][1] == pytest.approx(first + written["alpha_ms"] + written["gamma_ms"]), name
        assert model.profile.instance_init_s == pytest.approx(written["init_s"] + PYTHON_START_S), name
        assert f"max_batch_size: {model.max_batch}\n" in text, name


PYTHON_START_S = 0.3
EMULATED = ("alpha_ms", "beta_ms", "gamma_ms", "zeta_ms", "init_s")


def test_every_parameter_of_the_policies_can_be_set() -> None:
    assert set(PolicySettings.model_fields) == {field.name for field in fields(PolicyConfig)}
    assert set(PlanningSettings.model_fields) == {field.name for field in fields(PlanningConfig)}


def test_the_reference_has_each_key_once_with_its_unit_default_and_meaning() -> None:
    rows = {row.key: row for row in reference_rows()}
    assert len(rows) == len(reference_rows())
    assert all(row.kind and row.default and row.meaning for row in rows.values())
    assert (rows["pipelines.NAME.slo_ms"].kind, rows["pipelines.NAME.slo_ms"].default) == ("a number > 0, in ms", "required")
    assert rows["launch.slots[].device"].kind == DEVICE_WORDS
    assert rows["policy.tick_s"].default == "0.25"
    assert rows["mode"].default == "active"


def test_a_models_deprioritization_follows_the_pipeline_with_the_longest_slo(tmp_path: Path) -> None:
    text = changed("slo_ms: 300\n", "slo_ms: 300\n  other:\n    stages: [classifier]\n    slo_ms: 400\n")
    assert load_settings(write(tmp_path, text)).deprioritize_after_s == {}
    deprioritizing = text.replace("  name: themis\n", "  name: themis\n  deprioritize_after_slo_fraction: 0.5\n")
    assert load_settings(write(tmp_path, deprioritizing)).deprioritize_after_s == {"detector": 0.15, "classifier": 0.2}


def test_a_pipeline_may_be_deprioritized_alone_and_a_model_that_another_one_shares_is_served_in_turn(tmp_path: Path) -> None:
    text = changed("slo_ms: 300\n", "slo_ms: 300\n    overload: deprioritize\n")
    assert load_settings(write(tmp_path, text)).deprioritize_after_s == {"detector": 0.09, "classifier": 0.09}
    shared = text.replace("overload: deprioritize\n", "overload: deprioritize\n  other:\n    model: classifier\n    slo_ms: 400\n")
    assert load_settings(write(tmp_path, shared)).deprioritize_after_s == {"detector": 0.09}
    fraction = shared.replace("  name: themis\n", "  name: themis\n  deprioritize_after_slo_fraction: 0.8\n")
    assert load_settings(write(tmp_path, fraction)).deprioritize_after_s == {"detector": 0.24, "classifier": 0.32}
    shed = fraction.replace("overload: deprioritize", "overload: shed")
    assert load_settings(write(tmp_path, shed)).deprioritize_after_s == {}
    assert [pipeline.sheds for pipeline in load_settings(write(tmp_path, shed)).pipelines] == [True, False]


def test_a_stage_may_say_how_often_a_request_calls_it(tmp_path: Path) -> None:
    stages = "[detector, {model: classifier, per_request: 2.5, sequential: true}]"
    (pipeline,) = load_settings(write(tmp_path, GOOD.replace("[detector, classifier]", stages))).pipelines
    assert (pipeline.stages, pipeline.per_request, pipeline.sequential) == (("detector", "classifier"), (1.0, 2.5), (False, True))
    largest = stages.replace("2.5", "2.5, max_per_request: 4")
    (spread,) = load_settings(write(tmp_path, GOOD.replace("[detector, classifier]", largest))).pipelines
    assert (pipeline.max_per_request, spread.max_per_request) == ((1.0, 2.5), (1.0, 4.0))
    planned = build_rules(load_settings(tmp_path / "themis.yaml")).problems["video"].stages
    assert [(each.max_calls, each.in_turn) for each in planned] == [(1.0, 1.0), (4.0, 4.0)]
    (plain,) = load_settings(write(tmp_path, GOOD.replace("[detector, classifier]", "[detector, {model: classifier}]"))).pipelines
    assert (plain.calls, plain.per_request) == ((), (1.0, 1.0))


def test_models_may_lie_in_several_repositories(tmp_path: Path) -> None:
    path = write(tmp_path, changed("model_repository: models", "model_repository: [models, further]"))
    (tmp_path / "further").mkdir()
    (tmp_path / "models" / "classifier").rename(tmp_path / "further" / "classifier")
    launch = load_settings(path).launch
    assert launch is not None
    assert (launch.model_repository, launch.further_repositories) == (tmp_path / "models", (tmp_path / "further",))
    (tmp_path / "further" / "classifier").rename(tmp_path / "further" / "other")
    (problem,) = problems(path)
    assert f"models.classifier: {tmp_path / 'models'} and {tmp_path / 'further'} have no folder classifier: expected a model" in str(
        problem
    )
    (problem,) = problems(write(tmp_path, changed("model_repository: models", "model_repository: []")))
    assert "expected a path, or a list of paths; relative paths start at the folder of this file. Fix: add at least one entry" in str(
        problem
    )


def test_tls_belongs_to_the_grpc_address_with_absolute_paths(tmp_path: Path) -> None:
    for name in ("ca.pem", "own.pem", "key.pem"):
        (tmp_path / name).touch()
    tls = "tls: {ca: ca.pem, certificate: own.pem, key: key.pem, server_name: triton.example}"
    path = write(tmp_path, changed("grpc: 127.0.0.1:8001", f'grpc: "[::1]:8001"\n    {tls}'))
    [server] = load_settings(path).servers
    files = {"ca": f"{tmp_path}/ca.pem", "certificate": f"{tmp_path}/own.pem", "key": f"{tmp_path}/key.pem"}
    assert server.grpc_address == Address("::1", 8001, tls=True, server_name="triton.example", **files)
    assert not server.http_address.tls


def test_a_proxy_before_rest_and_metrics_has_tls_of_its_own_or_that_of_the_server(tmp_path: Path) -> None:
    for name in ("ca.pem", "own.pem", "key.pem"):
        (tmp_path / name).touch()
    secure = ("http: 127.0.0.1:8000", "http: https://triton.example:443"), ("grpc: 127.0.0.1:8001", "grpc: 127.0.0.1:8001\n    {}")
    (old, http), (grpc, with_section) = secure
    own = with_section.format("proxy_tls: {ca: ca.pem, certificate: own.pem, key: key.pem}")
    (server,) = load_settings(write(tmp_path, changed(old, http).replace(grpc, own))).servers
    files = {name: str(tmp_path.resolve() / f"{file}.pem") for name, file in (("ca", "ca"), ("certificate", "own"), ("key", "key"))}
    assert (server.http_address, server.grpc_address.tls) == (Address("triton.example", 443, tls=True, **files), False)
    assert server.http_address.url("/x") == "https://triton.example:443/x"
    assert not server.metrics_address.tls
    shared = with_section.format("tls: {ca: ca.pem}")
    (server,) = load_settings(write(tmp_path, changed(old, http).replace(grpc, shared))).servers
    assert server.http_address.ca == server.grpc_address.ca == files["ca"]
    for text, words in (
        (changed(old, http), "`http` is https without a `proxy_tls`: expected `proxy_tls`, or `tls`"),
        (changed(grpc, own), "`proxy_tls` is set, and neither `http` nor `metrics` is https"),
        (changed(old, "http: https://triton.example"), "add the port, such as triton.example:8001"),
    ):
        with pytest.raises(SettingsError, match=re.escape(words)):
            load_settings(write(tmp_path, text))


@pytest.mark.parametrize("name", ["_x", "a b", ".hidden", "..x", "...", "ü☃", "x" * 200, "é" * 127, "[a]", "a:b", "%"])
def test_a_model_may_have_any_name_that_a_folder_may_have(name: str, tmp_path: Path) -> None:
    quoted = json.dumps(name, ensure_ascii=False)
    (tmp_path / "models" / name).mkdir(parents=True)
    path = write(tmp_path, changed("  classifier:\n", f"  {quoted}: {{profile: classifier.yaml}}\n  classifier:\n"))
    assert name in load_settings(path).models


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\x00", "\n"])
def test_a_model_may_have_no_other_name(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ModelName).validate_python(name)


def test_the_name_of_model_configurations_is_passed_on_and_chooses_the_files_that_are_checked(tmp_path: Path) -> None:
    text = changed("grpc: 127.0.0.1:8001", "grpc: 127.0.0.1:8001\n    model_config_name: a\n    model_repository: [models, other, last]")
    path = write(tmp_path, text.replace("launch:\n", "launch:\n  model_config_name: b\n", 1))
    config = load_settings(path)
    assert config.launch is not None
    assert (config.servers[0].model_config_name, config.launch.model_config_name) == ("a", "b")
    folders = (config.servers[0].model_repository, *config.servers[0].further_repositories)
    assert folders == tuple(tmp_path / name for name in ("models", "other", "last"))
    custom = tmp_path / "models" / "detector" / "configs" / "b.pbtxt"
    custom.parent.mkdir()
    custom.write_text("max_batch_size: 1")
    assert ["models/detector/configs/b.pbtxt" in message for message in messages(path)] == [True]
    custom.write_text('name: "sequence_batching { }" # sequence_batching\nversion_policy { }')
    assert not any(model.stateful for model in load_settings(path).models.values())
    custom.write_text('name: "detector" backend: "#" max_batch_size: 1')
    assert ["models/detector/configs/b.pbtxt" in message for message in messages(path)] == [True]
    custom.write_text('name: "detector" sequence_batching { }')
    config = load_settings(path)
    assert [model.name for model in config.models.values() if model.stateful] == ["detector"]


def test_a_file_of_inputs_that_lacks_one_of_the_model_s_or_has_another_type_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, changed("models:\n  detector:\n", "models:\n  detector:\n    warmup: w.npz\n"))
    inputs = 'input [{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "Y" data_type: TYPE_STRING dims: [ 1 ] optional: true }]'
    (tmp_path / "models" / "detector" / "config.pbtxt").write_text(f'name: "detector" {inputs}')
    np.savez(tmp_path / "w.npz", Z=np.zeros(1, np.float32))
    (message,) = messages(path)
    assert "models.detector.warmup: " in message
    assert "no array for input X of model detector: expected X or detector.X, found Z. Fix: add it with numpy.savez" in message
    np.savez(tmp_path / "w.npz", X=np.array(["text"]))
    (message,) = messages(path)
    assert "array X is <U4: expected FP32. Fix: convert it before saving" in message
    np.savez(tmp_path / "w.npz", **{"detector.X": np.zeros(1, np.float32)})
    assert load_settings(path).models["detector"].name == "detector"


def test_classes_are_read_and_need_shed(tmp_path: Path) -> None:
    classes = "slo_ms: 300\n    classes: {header: x-class, values: [gold, silver]}\n"
    (pipeline, *_) = load_settings(write(tmp_path, changed("slo_ms: 300\n", f"{classes}    overload: shed\n"))).pipelines
    assert (pipeline.class_header, pipeline.classes) == ("x-class", ("gold", "silver"))
    assert "`classes` is set without `overload: shed`" in messages(write(tmp_path, changed("slo_ms: 300\n", classes)))[0]
    twice = classes.replace("silver", "gold") + "    overload: shed\n"
    assert "gold is named twice" in messages(write(tmp_path, changed("slo_ms: 300\n", twice)))[0]
