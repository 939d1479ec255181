import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner

import themis_triton
from themis_triton import cli
from themis_triton.commands import run_command
from themis_triton.commands.load_options import LoadFlags, options_from
from themis_triton.core.config import ModelInputs
from themis_triton.daemon.lock import locked
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = tuple(GROUP.commands)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The shipped settings, with a status address that nothing listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    path = tmp_path / "themis.yaml"
    text = (shipped("config") / "themis.yaml").read_text(encoding="utf-8")
    path.write_text(f"{text}status: {{address: 127.0.0.1:{port}}}\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """What the shell would get from `themis ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["themis", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_version() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{themis_triton.__version__}\n")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(flag: str) -> None:
    result = CliRunner().invoke(cli.app, [flag])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: themis {command}" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_every_command_can_be_parsed(command: str) -> None:
    program, name, *arguments = shlex.split(GROUP.commands[command].epilog.removeprefix("Example: "))
    assert (program, name) == ("themis", command)
    words = arguments[: arguments.index(">")] if ">" in arguments else arguments
    GROUP.commands[command].make_context(command, words).close()


def flags_of(command: Callable[..., object]) -> dict[str, object]:
    """The type of each flag of a command."""
    flags: dict[str, object] = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        kind, *more = get_args(hint) if get_origin(hint) is Annotated else (None,)
        option = next((each for each in more if isinstance(each, OptionInfo)), None)
        if option is not None:
            names = [str(each) for each in (option.default, *(option.param_decls or ()))]  # Typer takes the first name for a default.
            declared = [each for each in names if each.startswith("-")] or [f"--{name.replace('_', '-')}"]
            flags |= dict.fromkeys(declared, kind)
    return flags


CALLBACKS = {info.callback.__name__: info.callback for app in (cli.app, *cli.PARTS) for info in app.registered_commands if info.callback}


def test_flags_of_one_name_have_one_type_in_every_command() -> None:
    kinds: dict[str, set[object]] = {}
    for command in CALLBACKS.values():
        for flag, kind in flags_of(command).items():
            kinds.setdefault(flag, set()).add(kind)
    several = {
        flag for flag, found in kinds.items() if len({each for kind in found for each in get_args(kind) or (kind,)} - {NoneType}) > 1
    }
    assert several == {"--from", "--to", "--rate", "--devices", "--server", "--slo", "--slo-ms", "--pipeline"}


def test_every_command_that_reads_settings_takes_them_with_c() -> None:
    assert {name for name, command in CALLBACKS.items() if "-c" not in flags_of(command)} == {"init", "schema", "warm", "demo"}


def test_validate_takes_one_settings_file_as_an_argument_or_with_c(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(settings_file)
    assert CliRunner().invoke(cli.app, ["validate", "-c", path]).exit_code == 0
    assert exit_code(monkeypatch, "validate") == 2
    assert exit_code(monkeypatch, "validate", path, "-c", path) == 2
    assert "neither FILE nor -c is given: expected one settings file" in capsys.readouterr().err


def test_no_command_and_an_unknown_one_are_usage_errors() -> None:
    assert CliRunner().invoke(cli.app, []).exit_code == 2
    assert CliRunner().invoke(cli.app, ["dance"]).exit_code == 2


def test_init_writes_settings_that_are_valid_and_never_overwrites(tmp_path: Path) -> None:
    path = str(tmp_path / "new.yaml")
    runner = CliRunner()
    assert runner.invoke(cli.app, ["init", path]).exit_code == 0
    assert runner.invoke(cli.app, ["validate", path]).exit_code == 0
    refused = runner.invoke(cli.app, ["init", path])
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert runner.invoke(cli.app, ["init", path, "--force"]).exit_code == 0


@pytest.mark.parametrize("command", ["run", "status", "down", "load"])
def test_settings_that_are_not_there_give_code_2_and_name_the_file(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "missing.yaml")
    assert exit_code(monkeypatch, command, "-c", path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert path in captured.err
    assert captured.out == ""


def test_status_without_a_sidecar_gives_code_4_and_says_what_to_do(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "status", "-c", str(settings_file)) == 4
    assert f"themis run -c {settings_file}" in capsys.readouterr().err


def test_down_with_nothing_running_says_so(settings_file: Path) -> None:
    result = CliRunner().invoke(cli.app, ["down", "-c", str(settings_file)])
    assert (result.exit_code, result.output) == (0, f"nothing was running with {settings_file.parent / '.themis'}\n")


def test_down_beside_a_running_sidecar_gives_code_3(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(settings_file.parent / ".themis"):
        assert exit_code(monkeypatch, "down", "-c", str(settings_file)) == 3
    assert "state_directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--address"),
        (("--address", "127.0.0.1:1"), "--pipeline"),
        (("--address", "127.0.0.1:1", "--pipeline", "video"), "--pipeline: video is invalid"),
        (("--address", "127.0.0.1:1", "--pipeline", "v=m", "--shape", "m.INPUT=x"), "--shape: m.INPUT=x is invalid"),
        (("--address", "127.0.0.1:1", "--pipeline", "v=m", "--trace", "no-such-trace"), "no-such-trace"),
    ],
)
def test_a_wrong_flag_of_load_gives_code_2_and_names_the_flag(
    arguments: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "load", *arguments) == 2
    assert named in capsys.readouterr().err


def test_ctrl_c_gives_code_130(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "run_command", interrupted)
    assert exit_code(monkeypatch, "run", "-c", str(settings_file)) == 130


def test_the_data_of_a_load_are_those_of_every_model() -> None:
    flags = LoadFlags(None, "127.0.0.1:1", ("v=a,b",), None, TraceOptions(), (), 0, None, Path("real.npz"))
    assert options_from(flags).inputs == dict.fromkeys(("a", "b"), ModelInputs(file=Path("real.npz")))
