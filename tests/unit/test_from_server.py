"""`themis init --from`: a valid settings file of whatever a server holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from themis_triton.adapters.triton import inventory as inventory_module
from themis_triton.adapters.triton.inventory import _devices, _instances
from themis_triton.adapters.triton.model_config import parse_config
from themis_triton.commands.settings_commands import init_from_command, validate_command
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.address import Address
from themis_triton.core.config import Mode
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.core.inventory import HeldModel, Inventory
from themis_triton.core.observation import BatchCounters
from themis_triton.core.service_times import GUESS_MS
from themis_triton.settings import load_settings
from themis_triton.settings.from_server import settings_text

NAMES = ("plain", "with space", "_under.score", "größe", "on", "2nd", 'quo"ted', "a: b", "with-space", "x" * 200)
TAB = "with\ttab"
BATCHES = (BatchCounters(1, 300, 300 * 12_000.0), BatchCounters(4, 100, 100 * 30_000.0))
KNOWN = HeldModel("known", 2, 2, 4, batches=BATCHES, devices=("gpu:1",))


def inventory(*models: HeldModel) -> Inventory:
    return Inventory(Address("127.0.0.1", 8001), Address("127.0.0.1", 8000), Address("127.0.0.1", 8002), models)


def written(path: Path, *models: HeldModel) -> Path:
    path.write_text(settings_text(inventory(*models)), encoding="utf-8")
    return path


def test_every_name_that_triton_accepts_gives_valid_settings(tmp_path: Path) -> None:
    config = load_settings(written(tmp_path / "themis.yaml", *(HeldModel(name, 1, 1, 1) for name in (*NAMES, TAB))))
    assert tuple(config.models) == NAMES
    assert [pipeline.stages for pipeline in config.pipelines] == [(name,) for name in NAMES]
    assert '# model "with\\ttab": served as it is' in (tmp_path / "themis.yaml").read_text()
    assert config.mode is Mode.ADVISORY


def test_counts_and_service_times_come_from_the_server(tmp_path: Path) -> None:
    config = load_settings(written(tmp_path / "themis.yaml", KNOWN, replace(KNOWN, name="other", devices=("gpu:0",))))
    model = config.models["known"]
    assert (model.min_instances, model.max_batch) == (2, 4)
    assert model.profile.table.latency_ms[0][0] == pytest.approx(12.0, abs=0.01)
    assert config.servers[0].devices == ("gpu:0", "gpu:1")
    assert "enough executions to act on" in (tmp_path / "themis.yaml").read_text()


def test_models_on_the_processor_beside_gpus_give_valid_settings_with_the_gpus_in_order(tmp_path: Path) -> None:
    on = [HeldModel(f"m{number}", 1, 1, 1, devices=devices) for number, devices in enumerate((("gpu:10", "gpu:2"), ("cpu:0",), ("gpu:2",)))]
    config = load_settings(written(tmp_path / "themis.yaml", *on))
    assert config.servers[0].devices == ("gpu:2", "gpu:10")


def test_models_that_choose_their_gpu_are_told_of(tmp_path: Path) -> None:
    path = written(tmp_path / "themis.yaml", HeldModel("whole", 1, 1, 1, devices=()))
    assert "device: cpu:0   # models of KIND_MODEL choose their GPUs: name those here\n" in path.read_text()
    path = written(tmp_path / "themis.yaml", HeldModel("bound", 1, 1, 1, devices=("cpu:0",)))
    assert "device: cpu:0\n" in path.read_text()
    assert _devices(parse_config('name: "m" instance_group { kind: KIND_MODEL }', "m")) == ()


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ("instance_group { count: 2 kind: KIND_GPU gpus: [0, 1, 2, 3] }", (2, 2)),
        ("instance_group { count: 1 kind: KIND_GPU gpus: [0, 1] } instance_group { count: 3 kind: KIND_GPU gpus: [1] }", (1, 4)),
        ("instance_group { count: 3 kind: KIND_CPU } instance_group { count: 1 kind: KIND_CPU }", (4, 4)),
        ("ensemble_scheduling { }", (0, 0)),
    ],
)
def test_instances_are_counted_on_each_device_as_the_bounds_are(groups: str, instances: tuple[int, int]) -> None:
    assert _instances(parse_config(f'name: "m" {groups}', "m")) == instances


def test_a_model_with_too_few_executions_is_to_be_learnt(tmp_path: Path) -> None:
    few = replace(KNOWN, name="few", batches=(BatchCounters(1, 99, 1.0),))
    path = written(tmp_path / "themis.yaml", KNOWN, few)
    assert "1 of 2 models have executed too little" in path.read_text()
    assert "profile: {learn: true}   # 99 executions so far" in path.read_text()
    assert {name: model.profile.is_guess for name, model in load_settings(path).models.items()} == {"known": False, "few": True}


def models(*names: str) -> list[HeldModel]:
    return [HeldModel(name, 1, 1, 1) for name in names]


def test_an_ensemble_is_a_pipeline_of_its_members(tmp_path: Path) -> None:
    outer, inner = HeldModel("outer", 0, 0, 1, steps=("pre", "with space", "net", "net")), HeldModel("with space", 0, 0, 1, steps=("cut",))
    path = written(tmp_path / "themis.yaml", outer, inner, *models("cut", "net", "pre", "own"))
    config = load_settings(path)
    assert list(config.models) == ["cut", "net", "pre", "own"]
    ensemble, own = config.pipelines
    assert (ensemble.name, ensemble.front, ensemble.stages, ensemble.per_request) == ("outer", "outer", ("pre", "cut", "net"), (1, 1, 2))
    assert ensemble.slo_ms == pytest.approx(10 * 4 * GUESS_MS)
    assert own.stages == ("own",)
    assert validate_command(path, live=False, as_json=False) == 0


def test_an_ensemble_with_a_member_that_settings_cannot_name_is_named_with_the_reason(tmp_path: Path) -> None:
    ensemble = HeldModel("ens", 0, 0, 1, steps=("pre", "the\tnet"))
    path = written(tmp_path / "themis.yaml", ensemble, *models("pre", "the\tnet", "own"))
    assert list(load_settings(path).models) == ["own"]
    assert '# ensemble ens of pre, "the\\tnet": served as it is; the names of all its models\n' in path.read_text()
    assert "calls:" not in path.read_text()


def test_python_models_are_named_because_they_may_call_others(tmp_path: Path) -> None:
    path = written(tmp_path / "themis.yaml", HeldModel("bls", 1, 1, 1, may_call=True), HeldModel("plain", 1, 1, 1))
    assert "# calls: {CALLER: [CALLEE]}. Python models of this server: bls.\n" in path.read_text()
    assert "BLS" not in written(tmp_path / "other.yaml", HeldModel("plain", 1, 1, 1)).read_text()


def test_addresses_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    with pytest.raises(SettingsError, match="--from: nowhere is invalid: expected host:port"):
        init_from_command(path, force=False, source="nowhere", http=None, metrics=None)
    with pytest.raises(ServerError, match=r"--from: 127\.0\.0\.1:1 did not answer"):
        init_from_command(path, force=False, source="127.0.0.1:1", http="127.0.0.1:2", metrics=None)
    assert not path.exists()


def test_validate_names_the_pipelines_that_stay_on_one_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "themis.yaml", HeldModel("counter", 1, 1, 4, stateful=True))
    (tmp_path / "models" / "counter").mkdir(parents=True)
    (tmp_path / "models" / "counter" / "config.pbtxt").write_text("max_batch_size: 4\nsequence_batching { oldest {} }\n")
    path.write_text(path.read_text().replace("# model_repository: /models ", "model_repository: models "))
    assert validate_command(path, live=False, as_json=False) == 0
    assert (
        "pipelines.counter: counter keeps state between the calls of a sequence; one server has all of its calls" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (TlsFlags(Path("ca"), certificate=Path("own")), "--certificate: --key is missing"),
        (TlsFlags(Path("ca"), key=Path("key")), "--key: --certificate is missing"),
        (TlsFlags(certificate=Path("own"), key=Path("key")), "--certificate: --ca is missing"),
        (TlsFlags(server_name="triton"), "--server-name: --ca is missing"),
    ],
)
def test_flags_of_tls_that_lack_another_one_are_refused(flags: TlsFlags, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        flags.applied(Address("a", 1))


def test_a_server_with_a_restricted_repository_keeps_its_key_in_a_file_of_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object) -> Inventory:
        return replace(inventory(KNOWN), model_control_key='a "key"')

    monkeypatch.setattr(inventory_module, "read_inventory", read)
    path = tmp_path / "themis.yaml"
    path.touch()
    assert init_from_command(path, force=True, source="127.0.0.1:1", http=None, metrics=None, key='a "key"') == 0
    assert load_settings(path).servers[0].model_control_key == 'a "key"'
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_server_with_tls_keeps_its_authority(tmp_path: Path) -> None:
    ca = tmp_path / "my ca.pem"
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1001: .*my ca\.pem cannot be read .*Fix: correct its `tls` section or --ca"):
        init_from_command(tmp_path / "new.yaml", force=False, source="127.0.0.1:1001", http=None, metrics=None, tls=TlsFlags(ca))
    for file in (ca, tmp_path / "own.pem", tmp_path / "key.pem"):
        file.touch()
    own = {"certificate": str(tmp_path / "own.pem"), "key": str(tmp_path / "key.pem"), "server_name": "triton.example"}
    secure = Address("::1", 8001, tls=True, ca=str(ca), **own)
    (tmp_path / "themis.yaml").write_text(settings_text(replace(inventory(KNOWN), grpc_address=secure)), encoding="utf-8")
    assert load_settings(tmp_path / "themis.yaml").servers[0].grpc_address == secure
