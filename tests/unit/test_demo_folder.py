from pathlib import Path

import pytest

from themis_triton.core.errors import EnvironmentCheckError, SettingsError
from themis_triton.demo.folder import MARKER, own_folder
from themis_triton.demo.run import DemoOptions, run_demo
from themis_triton.load.traces import TraceOptions


@pytest.mark.parametrize("made", [True, False])
def test_a_new_or_empty_folder_becomes_the_demos_and_serves_again(made: bool, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    if made:
        folder.mkdir()
    with own_folder(folder):
        (folder / "state").mkdir()
        (folder / "run.png").touch()
    with own_folder(folder):
        assert not (folder / "state").exists()
        assert (folder / "run.png").exists()


def test_a_folder_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "precious").touch()
    with pytest.raises(SettingsError, match=r"holds state .* expected a new or empty folder"), own_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "precious"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(SettingsError, match="is a file: expected a folder"), own_folder(path):
        pass


def test_two_demos_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with own_folder(tmp_path), pytest.raises(EnvironmentCheckError, match=r"--out: .* is in use"), own_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pipeline": "dance"}, "--pipeline: dance is invalid: expected video, sentiment, nlp"),
        ({"cold_start_s": 120.0}, "--cold-start: 120 is invalid: expected at least 0 and less than launch.ready_timeout_s, 120 s"),
        ({"trace": TraceOptions("no-such-trace")}, "--trace: no-such-trace is neither"),
    ],
)
def test_a_wrong_flag_touches_nothing(options: dict[str, object], named: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / "state").mkdir()
    with pytest.raises(SettingsError, match=named):
        run_demo(DemoOptions(tmp_path, **options))  # type: ignore[arg-type] # the fields are what is tried
    assert (tmp_path / "state").is_dir()
