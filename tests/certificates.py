"""Certificates for tests with TLS, made by openssl."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def self_made_certificate(folder: Path) -> dict[str, str]:
    """A certificate for `localhost` that signed itself; the server and its clients use the same."""
    folder.mkdir()
    files = {"ca": "certificate.pem", "certificate": "certificate.pem", "key": "key.pem"}
    paths = {name: str(folder / file) for name, file in files.items()}
    extension = "subjectAltName=DNS:localhost"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    out = ["-subj", "/CN=themis", "-addext", extension, "-keyout", paths["key"], "-out", paths["certificate"]]
    subprocess.run([*command, *out], check=True, capture_output=True, timeout=20)
    return paths


def authority(folder: Path) -> dict[str, str]:
    """A certificate authority, as `ca` and `key`."""
    made = self_made_certificate(folder)
    return {"ca": made["ca"], "key": made["key"]}


def issued_certificate(folder: Path, by: Mapping[str, str], serial: int = 1, days: int = 2) -> dict[str, str]:
    """A certificate for `localhost` that the authority signed; `days` negative: it has expired."""
    folder.mkdir()
    paths = {"ca": by["ca"], "certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    request, extensions = folder / "request.pem", folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    sign = ["openssl", "x509", "-req", "-in", str(request), "-CA", by["ca"], "-CAkey", by["key"], "-set_serial", str(serial)]
    for command in (
        [*new, "-keyout", paths["key"], "-out", str(request)],
        [*sign, "-days", str(days), "-extfile", str(extensions), "-out", paths["certificate"]],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    return paths
