"""The manual page of the command line, from the same source as `--help`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import typer

import themis_triton
from themis_triton.core.errors import EnvironmentCheckError, ServerError, SettingsError

if TYPE_CHECKING:
    from typer.core import TyperCommand, TyperGroup

DESCRIPTION = (
    "Themis scales models in place (instances inside a running server) and out and in (servers on spare devices), behind an Envoy that it "
    "configures. One YAML file describes servers, models and pipelines. Traffic does not depend on Themis: it may be stopped at any time, "
    "and adopts what runs when it starts again."
)
EXIT_CODES = (
    (0, "Success."),
    (1, "The result is bad, such as failed requests of a load."),
    (SettingsError.exit_code, "The settings or the flags are wrong."),
    (EnvironmentCheckError.exit_code, "Something is missing on this machine."),
    (ServerError.exit_code, "A server does not answer."),
    (130, "Interrupted by Ctrl-C."),
)
FILES = (
    ("themis.yaml", "The settings; `themis init` writes one. The command `themis schema` prints its JSON Schema."),
    (
        "state_directory/journal.sqlite",
        "Decisions, actions and samples, read by `themis history` and `themis why`. Default: .themis beside it.",
    ),
    ("state_directory/token", "The token of the status API, which calls that change something need."),
)
ENVIRONMENT = (
    ("THEMIS_MODEL_CONTROL_KEY", "The key of a server whose model repository is restricted, where a command takes --model-control-key."),
    ("THEMIS_TRACES", "A folder with the published Twitter trace, for --trace twitter-paper."),
)


def man_page(app: typer.Typer) -> str:
    """The page in roff, for `man`."""
    return "".join(f"{line}\n" for line in _lines(typer.main.get_command(app)))  # type: ignore[arg-type]  # with several commands it is a group


def _lines(group: TyperGroup) -> Iterator[str]:
    yield f'.TH THEMIS 1 "" "themis {themis_triton.__version__}" "Themis for Triton"'
    summary = group.help or ""
    yield from (".SH NAME", f"themis \\- {_text(summary[:1].lower() + summary[1:].rstrip('.'))}")
    yield from (".SH SYNOPSIS", ".B themis", ".I COMMAND", "[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]")
    yield from (".SH DESCRIPTION", _text(DESCRIPTION))
    yield ".SH OPTIONS"
    yield from _options(group)
    yield ".SH COMMANDS"
    for name, command in sorted(group.commands.items()):
        yield from _command(name, cast("TyperCommand", command))
    yield ".SH EXIT STATUS"
    yield from (line for code, meaning in EXIT_CODES for line in (".TP", f".B {code}", _text(meaning)))
    for title, rows in (("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT)):
        yield f".SH {title}"
        yield from (line for name, meaning in rows for line in (".TP", f".I {_text(name)}", _text(meaning)))


def _command(name: str, command: TyperCommand) -> Iterator[str]:
    context = command.make_context(name, ["--help"], resilient_parsing=True)
    yield f".SS themis {_text(name)} {_text(' '.join(command.collect_usage_pieces(context)))}"
    for paragraph in (command.help or "").split("\n\n"):
        yield from (".PP", _text(" ".join(paragraph.split())))
    yield from _options(command)
    if command.epilog:
        yield from (
            ".PP",
            _text(command.epilog.partition(": ")[0]) + ":",
            ".PP",
            ".RS 4",
            ".nf",
            _text(command.epilog.partition(": ")[2]),
            ".fi",
            ".RE",
        )


def _options(command: TyperCommand | TyperGroup) -> Iterator[str]:
    context = typer.Context(command, info_name=command.name)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            names, meaning = record
            yield from (".TP", f"\\fB{_text(names)}\\fR", _text(meaning))


def _text(words: str) -> str:
    """Words as roff takes them: no character is a command."""
    safe = words.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return f"\\&{safe}" if safe.startswith(".") else safe
