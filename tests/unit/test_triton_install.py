"""Finding Triton, and saying what is missing."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from themis_triton.adapters.local.triton_install import check_python, check_stub, find_triton, prepare_backends
from themis_triton.core.errors import EnvironmentCheckError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_package(root: Path, version: str = VERSION) -> Path:
    for file in ("backends/python/libtriton_python.so", f"python_backend_stubs/{version}/triton_python_backend_stub"):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text(file)
    return root


def make_python(directory: Path, message: str) -> Path:
    directory.mkdir()
    python = directory / "python3"
    python.write_text(f"#!/bin/sh\n{message}\n")
    python.chmod(0o700)
    return directory


def test_backends_are_prepared_once_by_many(tmp_path: Path) -> None:
    root = make_package(tmp_path / "package")
    with ThreadPoolExecutor(8) as pool:
        prepared = {future.result() for future in [pool.submit(prepare_backends, root, tmp_path / "state") for _ in range(16)]}
    assert len(prepared) == 1
    (backends,) = prepared
    assert (backends / "python" / "libtriton_python.so").read_text() == "backends/python/libtriton_python.so"
    assert (backends / "python" / "triton_python_backend_stub").read_text().endswith(f"{VERSION}/triton_python_backend_stub")
    assert list(backends.parent.iterdir()) == [backends]


def test_another_installation_gets_other_backends(tmp_path: Path) -> None:
    one, other = (prepare_backends(make_package(tmp_path / name), tmp_path / "state") for name in ("one", "other"))
    assert one != other


def test_a_missing_stub_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentCheckError, match=rf"runs Python models on Python 2\.7, and this is {VERSION}"):
        prepare_backends(make_package(tmp_path / "package", "2.7"), tmp_path / "state")


def test_a_missing_extra_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EnvironmentCheckError, match=r"pip install 'themis-triton\[local\]'"):
        find_triton(tmp_path)


def test_an_own_binary_brings_its_own_backends(tmp_path: Path) -> None:
    binary = make_python(tmp_path / "bin", "exit 0") / "python3"
    install = find_triton(tmp_path, binary)
    assert (install.binary, install.backend_directory, install.path_prefix) == (binary, None, None)


def test_wrong_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentCheckError, match=r"launch.binary: .*/tritonserver is not an executable file"):
        find_triton(tmp_path, tmp_path / "tritonserver")
    with pytest.raises(EnvironmentCheckError, match=r"launch.backend_directory: .*/none is not a folder"):
        find_triton(tmp_path, Path(sys.executable), tmp_path / "none")


def test_a_stub_that_lacks_a_shared_library_is_refused_before_a_server_is_started(tmp_path: Path) -> None:
    words = "error while loading shared libraries: libpython3.12.so.1.0: cannot open shared object file"
    stub = make_python(tmp_path / "bin", f"echo 'stub: {words}' >&2; exit 127") / "python3"
    with pytest.raises(EnvironmentCheckError, match=r"backend cannot start: libpython3\.12\.so\.1\.0: cannot open .*\. Fix: "):
        check_stub(stub)
    check_stub(make_python(tmp_path / "good", "echo 'Expected 9 arguments' >&2; exit 1") / "python3")
    with pytest.raises(EnvironmentCheckError, match="cannot be started"):
        check_stub(tmp_path / "none")


def test_the_installed_stub_starts() -> None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the extra `local` is not installed")
    check_stub(Path(spec.submodule_search_locations[0]) / "tritonserver" / "python_backend_stubs" / VERSION / "triton_python_backend_stub")


def test_this_python_fits() -> None:
    check_python(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (f"echo {VERSION.replace('.', ' ')} 2.4.1", r"has numpy 2\.4\.1, .*empty outputs: expected numpy < 2"),
        ("echo 3 4 1.26.4", rf"is Python 3\.4, and Themis runs on {VERSION}"),
        ("echo No module named numpy >&2; exit 1", r"cannot import numpy \(No module named numpy\)"),
    ],
)
def test_a_python_that_does_not_fit_is_refused(tmp_path: Path, message: str, words: str) -> None:
    with pytest.raises(EnvironmentCheckError, match=words):
        check_python(make_python(tmp_path / "bin", message))


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentCheckError, match=r"/python3 does not exist"):
        check_python(tmp_path)
