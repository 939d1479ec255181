"""Certificates for tests with TLS, made by openssl."""

from __future__ import annotations

import subprocess
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
