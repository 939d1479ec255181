"""TLS of listeners: the PEM files of the settings, the status API, and the clients' flags."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.certificates import authority, issued_certificate, self_made_certificate
from tests.unit.fakes import FakeClock
from tests.unit.samples import NOW_S, config
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.exposure import exposure_findings
from themis_triton.adapters.findings import Severity
from themis_triton.adapters.pem_certificates import PemError, check_pair, validity
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.status_client import get
from themis_triton.commands.load_options import LoadFlags, options_from
from themis_triton.commands.status_calls import Remote
from themis_triton.commands.tls_flags import TlsFlags
from themis_triton.core.address import Address
from themis_triton.core.config import StatusConfig, ThemisConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError, SettingsError
from themis_triton.core.listener_tls import ListenerTls
from themis_triton.core.status import STATUS_PATH
from themis_triton.daemon.api import serving
from themis_triton.daemon.status import StatusBoard
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_runtime_paths, load_settings
from themis_triton.settings.starter import starter

DAY_S = 86_400.0


def with_tls(files: Mapping[str, str], client_ca: str | None = None) -> ThemisConfig:
    """Settings whose status API and Envoy have the certificate."""
    tls = ListenerTls(Path(files["certificate"]), Path(files["key"]), Path(client_ca) if client_ca is not None else None)
    base = config()
    return replace(base, envoy=replace(base.envoy, tls=tls), status=StatusConfig(tls=replace(tls, client_ca=None)))


def findings(settings: ThemisConfig, days: float = 0.0) -> list[tuple[str, Severity, str]]:
    """The findings so many days from now."""
    found = exposure_findings(settings, SystemClock().now_s() + days * DAY_S, Path("absent"))
    return [(finding.what, finding.severity, finding.found) for finding in found]


def test_certificates_that_expired_or_soon_will_are_found(tmp_path: Path) -> None:
    issued = issued_certificate(tmp_path / "issued", authority(tmp_path / "ca"), days=90)
    settings = with_tls(issued)
    assert findings(settings) == []
    soon = findings(settings, days=61)
    assert [(what, severity) for what, severity, _ in soon] == [(f"{key}.tls.certificate", Severity.WARNING) for key in ("envoy", "status")]
    assert "in 28 days" in soon[0][2]
    for days, words in ((91, "expired on "), (-1, "is not valid before ")):
        late = findings(settings, days)
        assert {severity for _, severity, _ in late} == {Severity.ERROR}
        assert all(words in found for *_, found in late)


def test_files_that_do_not_belong_together_or_hold_no_certificate_are_found(tmp_path: Path) -> None:
    one, two = (self_made_certificate(tmp_path / name) for name in ("one", "two"))
    certificate, key, other = (Path(path) for path in (one["certificate"], one["key"], two["key"]))
    check_pair(certificate, key)
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    for pair, words in (
        ((certificate, other), "is not the key of"),
        ((certificate, locked), "has no private key, or an encrypted one"),
        ((key, key), "has no certificate in PEM form"),
        ((broken, key), "has a certificate that cannot be parsed"),
        ((tmp_path / "absent", key), "cannot be read"),
    ):
        with pytest.raises(PemError, match=words):
            check_pair(*pair)
    assert 1 < (validity(certificate).ends - validity(certificate).begins).days <= 2
    (first, *_) = findings(with_tls(one | {"key": two["key"]}, client_ca=str(key)))
    assert first[:2] == ("envoy.tls.certificate", Severity.ERROR)


def test_the_status_api_shows_its_certificate_and_a_new_one_after_it_changed(tmp_path: Path) -> None:
    ca = authority(tmp_path / "ca")
    one, two = (issued_certificate(tmp_path / name, ca, serial) for serial, name in enumerate(("one", "two"), 1))
    now = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key")}
    tls = ListenerTls(now["certificate"], now["key"])
    address = replace(Address("127.0.0.1", free_ports(1)[0]), tls=True)
    pinned = {name: replace(address, ca=files["certificate"]) for name, files in (("one", one), ("two", two))}
    signed = replace(address, host="localhost", ca=ca["ca"], server_name="localhost")

    def put(files: Mapping[str, str]) -> None:
        for name, path in now.items():
            shutil.copy(files[name], path)

    async def code(at: Address) -> int:
        return (await asyncio.to_thread(get, at, STATUS_PATH)).code

    async def until_serving(at: Address) -> None:
        async with asyncio.timeout(20.0):
            while not await serves(at):
                pass

    async def serves(at: Address) -> bool:
        """Whether the certificate is this one now."""
        try:
            assert await code(at) == 200
        except ServerError:
            return False
        return True

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("themis_triton.daemon.status_listener.CHECK_EVERY_S", 0.05)
        async with serving(address, StatusBoard(config(), NOW_S), Exporter(), FakeClock(), tls=tls):
            assert await code(pinned["one"]) == await code(signed) == 200
            for wrong in (pinned["two"], replace(signed, host="127.0.0.1", server_name="127.0.0.1"), replace(address, tls=False)):
                with pytest.raises(ServerError, match="no response"):
                    await code(wrong)
            put(two)
            await until_serving(pinned["two"])
            with pytest.raises(ServerError, match="no response"):
                await code(pinned["one"])
            now["key"].write_text("none")
            assert await code(pinned["two"]) == 200
            put(one)
            await until_serving(pinned["one"])

    put(one)
    with pytest.MonkeyPatch.context() as patched:
        asyncio.run(scenario(patched))


def test_with_client_ca_the_status_api_answers_only_clients_with_a_certificate_that_it_signed(tmp_path: Path) -> None:
    ca, other = (authority(tmp_path / name) for name in ("ca", "other"))
    own = self_made_certificate(tmp_path / "own")
    known, stranger = (issued_certificate(tmp_path / f"issued-{n}", by, n) for n, by in ((1, ca), (2, other)))
    tls = ListenerTls(Path(own["certificate"]), Path(own["key"]), Path(ca["ca"]))
    port = free_ports(1)[0]
    address = replace(Address("127.0.0.1", port), tls=True, ca=own["certificate"])

    def identity(files: Mapping[str, str]) -> Path:
        file = tmp_path / f"{Path(files['key']).parent.name}.pem"
        file.write_text(Path(files["certificate"]).read_text() + Path(files["key"]).read_text())
        return file

    async def code(files: Mapping[str, str] | None) -> int:
        at = Remote(identity=identity(files) if files is not None else None).address(address)
        return (await asyncio.to_thread(get, at, STATUS_PATH)).code

    async def scenario(of: ListenerTls, refused: Mapping[str, Mapping[str, str] | None]) -> None:
        async with serving(address, StatusBoard(config(), NOW_S), Exporter(), FakeClock(), tls=of):
            assert await code(known) == 200
            for words, files in refused.items():
                with pytest.raises(ServerError, match=words):
                    await code(files)
            if not of.require_client_certificate:
                assert await code(None) == 200

    asyncio.run(scenario(tls, {"give --client-certificate FILE": None, "no response": stranger}))
    asyncio.run(scenario(replace(tls, require_client_certificate=False), {"no response": stranger}))
    with pytest.raises(EnvironmentCheckError, match=r"status\.tls: .* has no certificate in PEM form"):
        asyncio.run(scenario(replace(tls, client_ca=Path(ca["key"])), {}))
    with pytest.raises(ServerError, match=r"--client-certificate: .* cannot be used"):
        get(Remote(identity=Path(known["certificate"])).address(address), STATUS_PATH)


def test_a_status_api_whose_files_cannot_be_used_does_not_start(tmp_path: Path) -> None:
    tls = ListenerTls(tmp_path / "absent", tmp_path / "absent")

    async def scenario() -> None:
        async with serving(Address("127.0.0.1", free_ports(1)[0]), StatusBoard(config(), NOW_S), Exporter(), FakeClock(), tls=tls):
            pass

    with pytest.raises(EnvironmentCheckError, match=r"status\.tls: .*absent cannot be read"):
        asyncio.run(scenario())


def test_the_settings_of_listeners_name_their_files(tmp_path: Path) -> None:
    path = tmp_path / "themis.yaml"
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).write_text("any")
    pair = "certificate: cert.pem, key: key.pem"
    path.write_text(f"{starter()}envoy: {{tls: {{{pair}, client_ca: ca.pem}}}}\nstatus: {{tls: {{{pair}, client_ca: ca.pem}}}}\n")
    settings = load_settings(path)
    own = (tmp_path / "cert.pem", tmp_path / "key.pem")
    assert settings.envoy.tls == ListenerTls(*own, tmp_path / "ca.pem", require_client_certificate=True)
    assert settings.status.tls == ListenerTls(*own, tmp_path / "ca.pem", require_client_certificate=True)
    assert load_runtime_paths(path).status_address == replace(settings.status.address, tls=True, ca=str(tmp_path / "cert.pem"))
    path.write_text(
        f"{starter()}envoy: {{tls: {{{pair}, require_client_certificate: true}}}}\nstatus: {{tls: {{certificate: gone, key: gone}}}}\n"
    )
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    for words in (
        "`require_client_certificate` is set without `client_ca`",
        "status.tls.certificate: gone does not exist",
        "status.tls.key",
    ):
        assert words in str(refused.value)


def test_a_load_needs_the_authority_of_a_proxy_with_tls(tmp_path: Path) -> None:
    files = self_made_certificate(tmp_path / "tls")
    path = tmp_path / "themis.yaml"
    path.write_text(f"{starter()}envoy: {{tls: {{certificate: {files['certificate']}, key: {files['key']}}}}}\n")

    def address(tls: TlsFlags, named: str | None = None) -> str:
        return options_from(LoadFlags(path, named, (), None, TraceOptions(), (), 0, None, tls=tls)).address

    with pytest.raises(
        SettingsError, match=r"--ca is missing: envoy\.tls is set: expected the PEM file of the authority of .*Fix: give --ca"
    ):
        address(TlsFlags())
    ca = Path(files["ca"])
    assert Address.parse(address(TlsFlags(ca, server_name="localhost"))) == Address(
        "127.0.0.1", 9001, tls=True, ca=str(ca), server_name="localhost"
    )
    assert address(TlsFlags(), "10.0.0.1:8001") == "10.0.0.1:8001"
    with pytest.raises(SettingsError, match="--address: nonsense is invalid"):
        address(TlsFlags(ca), "nonsense")
