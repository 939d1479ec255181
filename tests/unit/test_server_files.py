"""A launched server's own view of the model repository, and the warm-up's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import InferInput

from themis_triton.adapters.server_files import ServerFiles, add_ensembles, add_model, build_view, files_version
from themis_triton.adapters.triton.model_config import parse_config, read_config_text, state_of
from themis_triton.adapters.triton.warmup import concrete_shape, warmup_batches
from themis_triton.adapters.triton.warmup_data import zeros
from themis_triton.core.errors import LaunchFailedError, ModelFailedError
from themis_triton.core.fleet import ModelState


def make_repository(root: Path, config: str) -> Path:
    code, weights = root / "m" / "1", root / "m" / "2"
    for directory in (code / "package", code / "__pycache__", weights):
        directory.mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(config)
    (root / "m" / "labels.txt").write_text("cat")
    (code / "model.py").write_text("import package")
    (code / "package" / "__init__.py").write_text("")
    (weights / "model.onnx").write_text("weights")
    return root


def test_the_view_has_the_planned_state_and_links_to_everything_else(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", 'backend: "python" input { name: "i" } output { name: "o" } max_batch_size: 8')
    files = ServerFiles(tmp_path / "state", "s1")
    assert build_view(files, repository, {"m": ModelState(3, 4)}, {})
    view = files.models / "m"
    assert state_of(parse_config((view / "config.pbtxt").read_text(), "view")) == ModelState(3, 4)
    assert (view / "labels.txt").read_text() == "cat"
    assert (view / "2").is_symlink()
    assert (view / "1" / "model.py").resolve() == repository / "m" / "1" / "model.py"


def test_a_models_code_reads_what_lies_beside_its_folder_and_models_are_added_in_place_of_links(tmp_path: Path) -> None:
    first, second = make_repository(tmp_path / "first", "max_batch_size: 8"), tmp_path / "second"
    for name in ("shared", "other", "ens"):
        (second / name).mkdir(parents=True)
        (second / name / "config.pbtxt").write_text("")
    (second / "ens" / "configs").mkdir()
    (second / "ens" / "configs" / "h100.pbtxt").write_text('name: "ens"')
    (second / "m").mkdir()
    files = ServerFiles(tmp_path / "state", "s1")
    build_view(files, first, {"m": ModelState(1, 1)}, {}, further=[second, tmp_path / "absent"])
    assert (files.models / "m" / ".." / "shared" / "config.pbtxt").samefile(second / "shared" / "config.pbtxt")
    assert not (files.models / "m").is_symlink()
    add_model(files, first, "other", ModelState(5, 1), {}, further=[second])
    assert "count: 5" in (files.models / "other" / "config.pbtxt").read_text()
    add_model(files, first, "other", ModelState(6, 1), {}, further=[second])
    assert "count: 5" in (files.models / "other" / "config.pbtxt").read_text()
    add_ensembles(files, first, ["ens"], [second], "h100")
    assert (files.models / "ens" / "config.pbtxt").read_text() == 'name: "ens"'
    assert [(second / name / "config.pbtxt").read_text() for name in ("other", "ens")] == ["", ""]


def test_python_cannot_write_its_cache_into_the_view(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "state", "s1")
    build_view(files, make_repository(tmp_path / "repository", ""), {"m": ModelState(1, 1)}, {})
    for directory in (files.models / "m" / "1", files.models / "m" / "1" / "package"):
        assert (directory / "__pycache__").is_file()
        assert not directory.is_symlink()


def test_a_python_environment_is_linked_with_its_caches(tmp_path: Path) -> None:
    repository, files = make_repository(tmp_path / "repository", ""), ServerFiles(tmp_path / "state", "s1")
    for file in ("bin/activate", "lib/python3.11/site-packages/a.py"):
        (repository / "m" / "env" / file).parent.mkdir(parents=True)
        (repository / "m" / "env" / file).write_text("")
    build_view(files, repository, {"m": ModelState(1, 1)}, {})
    assert (files.models / "m" / "env").is_symlink()


def test_an_incomplete_configuration_is_told(tmp_path: Path) -> None:
    assert not build_view(
        ServerFiles(tmp_path, "s1"), make_repository(tmp_path / "repository", 'backend: "python"'), {"m": ModelState(1, 1)}, {}
    )


def test_a_model_without_a_configuration_is_left_to_its_backend_but_for_the_count(tmp_path: Path) -> None:
    repository, files = make_repository(tmp_path / "repository", ""), ServerFiles(tmp_path / "state", "s1")
    (repository / "m" / "config.pbtxt").unlink()
    assert not build_view(files, repository, {"m": ModelState(3, 4, 10)}, {"m": 1.0})
    assert (files.models / "m" / "config.pbtxt").read_text() == 'name: "m"\ninstance_group {\n  count: 3\n}\n'
    assert (files.models / "m" / "labels.txt").read_text() == "cat"


def test_a_model_may_lie_in_a_further_repository(tmp_path: Path) -> None:
    files, further = ServerFiles(tmp_path / "state", "s1"), make_repository(tmp_path / "further", "max_batch_size: 8")
    (tmp_path / "first").mkdir()
    build_view(files, tmp_path / "first", {"m": ModelState(1, 1)}, {}, further=[further])
    assert (files.models / "m" / "labels.txt").read_text() == "cat"


def test_models_and_ensembles_have_the_configuration_of_the_chosen_name_where_there_is_one(tmp_path: Path) -> None:
    repository, files = make_repository(tmp_path / "repository", "max_batch_size: 8"), ServerFiles(tmp_path / "state", "s1")
    for model in ("ens", "plain"):
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text('parameters { key: "from" value { string_value: "default" } }')
    for model in ("m", "ens"):
        (repository / model / "configs").mkdir()
        (repository / model / "configs" / "h100.pbtxt").write_text('parameters { key: "from" value { string_value: "h100" } }')
    states = {"m": ModelState(3, 1), "plain": ModelState(2, 1)}
    build_view(files, repository, states, {}, ensembles=["ens"], config_name="h100")
    view = {model: parse_config((files.models / model / "config.pbtxt").read_text(), model) for model in ("m", "ens", "plain")}
    assert {model: config.parameters["from"].string_value for model, config in view.items()} == {
        "m": "h100",
        "ens": "h100",
        "plain": "default",
    }
    assert (state_of(view["m"]), (files.models / "ens" / "1").is_dir()) == (ModelState(3, 1), True)
    build_view(files, repository, states, {}, ensembles=["ens"])
    assert (files.models / "ens").is_symlink()
    assert "h100" not in (files.models / "m" / "config.pbtxt").read_text()
    text, source = read_config_text(repository, "m", "h100") or ("", "")
    assert ("h100" in text, source) == (True, str(repository / "m" / "configs" / "h100.pbtxt"))


def test_faults_name_the_file(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "state", "s1")
    with pytest.raises(LaunchFailedError, match=r"there is no folder .*/absent\. Fix: "):
        build_view(files, tmp_path, {"absent": ModelState(1, 1)}, {})
    with pytest.raises(ModelFailedError, match=r"repository/m/config.pbtxt:1:"):
        build_view(files, make_repository(tmp_path / "repository", "nonsense: 1"), {"m": ModelState(1, 1)}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchFailedError, match="cannot be written to"):
        build_view(ServerFiles(tmp_path / "file", "s1"), tmp_path / "repository", {"m": ModelState(1, 1)}, {})


def test_removing_keeps_the_log(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "state", "s1")
    assert "no log was written" in files.log_tail()
    build_view(files, make_repository(tmp_path / "repository", ""), {"m": ModelState(1, 1)}, {})
    files.log.write_text("".join(f"line {number}\n" for number in range(50)))
    files.remove()
    files.remove()
    assert not files.directory.exists()
    assert (tmp_path / "repository" / "m" / "2" / "model.onnx").exists()
    assert files.log_tail(2).endswith("last lines:\nline 48\nline 49")


@pytest.mark.parametrize(("largest", "batches"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_batch_sizes_of_the_warm_up(largest: int, batches: tuple[int, ...]) -> None:
    assert warmup_batches(largest) == batches


def test_tensors_of_the_warm_up() -> None:
    assert concrete_shape([-1]) == [1]
    assert concrete_shape([3, -1, -1]) == [3, 32, 32]
    assert zeros("BYTES", [2, 1]).tolist() == [[b"warm-up"], [b"warm-up"]]
    for datatype in ("BOOL", "UINT8", "INT64", "FP16", "FP32", "BF16"):
        tensor = InferInput("X", [2, 3], datatype)
        tensor.set_data_from_numpy(zeros(datatype, [2, 3]))


def test_the_version_of_files_changes_with_them_and_not_with_pythons_cache(tmp_path: Path) -> None:
    model, inputs = tmp_path / "m", tmp_path / "inputs.npz"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text("one")
    before = files_version(model, inputs)
    (model / "1" / "__pycache__").mkdir()
    (model / "1" / "__pycache__" / "model.pyc").touch()
    assert files_version(model, inputs) == before
    inputs.touch()
    with_inputs = files_version(model, inputs)
    (model / "1" / "model.py").write_text("another")
    assert len({before, with_inputs, files_version(model, inputs)}) == 3


def test_only_a_line_of_triton_itself_shows_that_it_has_read_its_arguments(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path, "one")
    files.log.parent.mkdir()
    assert not files.has_line_of(11007, 0)
    before = "I1129 13:57:57.638559 11007 server.cc:674] of an earlier process with this id\n"
    loader = "ERROR: ld.so: object '/nonexistent.so' from LD_PRELOAD cannot be preloaded: ignored.\nI1129 13:57:57.6 911007 other.cc:1] x\n"
    files.log.write_text(before + loader)
    assert not files.has_line_of(11007, len(before))
    for line in ('W1129 13:57:57.638559 11007 pinned_memory_manager.cc:273] "x"\n', '2026-11-29T13:57:57Z I 11007 server.cc:1] "x"\n'):
        files.log.write_text(before + loader + line)
        assert files.has_line_of(11007, len(before))


HEAD = "E1129 17:00:00.000000 42 model_lifecycle.cc:654] "


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("failed to load 'm' version 1: Internal: ImportError: no x\\n\\nAt:\\n  model.py(1)\\n", ("m", "Internal: ImportError: no x")),
        ("Poll failed for model directory 'm': no version", ("m", "no version")),
        ("failed to load 'm' version 1: Internal: CUDA error: out of memory", None),
        ("successfully loaded 'm'", None),
    ],
)
def test_the_log_tells_which_model_cannot_be_loaded_and_a_want_of_memory_is_not_the_models(
    line: str, failure: tuple[str, str] | None, tmp_path: Path
) -> None:
    files = ServerFiles(tmp_path, "s1")
    assert files.load_failure() is None
    files.log.parent.mkdir(parents=True)
    later = f"""{HEAD}"failed to load 'later' version 1: x"\n""" if failure else ""
    files.log.write_text(f'{HEAD}"{line}"\n{later}')
    assert files.load_failure() == failure
