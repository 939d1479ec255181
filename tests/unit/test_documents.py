"""README and docs: every YAML block is valid settings, every command exists with its flags, every name and link resolves."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.documents import ROOT, Block, blocks, documents, links, session_settings, spans
from themis_triton import cli
from themis_triton.adapters.exporter import Exporter
from themis_triton.core.policy import PolicyName
from themis_triton.settings import load_settings, reference_rows

LANGUAGES = {"yaml", "console", "text"}
UNTESTED_BLOCKS = 3
SETTINGS_SECTIONS = {key.split(".")[0] for key in (row.key for row in reference_rows())}
SURFACE = {"surface": {"form": "contention", "alpha_ms": 1, "beta_ms": 2, "gamma_ms": 1, "zeta_ms": 6}}
BASE: dict[str, Any] = {
    "servers": {"first": {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000", "metrics": "127.0.0.1:8002", "device": "gpu:0"}},
    "models": {"detector": {"profile": SURFACE}, "classifier": {"profile": SURFACE}},
    "pipelines": {"video": {"stages": ["detector", "classifier"], "slo_ms": 300}},
}
QUICK = {"validate", "init", "schema", "plan"}


def of(*languages: str) -> list[Block]:
    return [block for block in blocks() if block.language in languages and not block.untested]


# Blocks


def test_every_block_has_a_language_that_is_tested_or_plain_text() -> None:
    assert [str(block) for block in blocks() if block.language not in LANGUAGES] == []


def test_blocks_that_no_test_can_run_are_few_and_say_why() -> None:
    untested = [block for block in blocks() if block.untested]
    assert len(untested) == UNTESTED_BLOCKS, [f"{block}: {block.note}" for block in untested]


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_yaml_block_is_valid_settings(block: Block, tmp_path: Path) -> None:
    """A fragment is merged into a base that has what it leaves out. Profiles, repositories and secrets that it names exist."""
    written = yaml.safe_load(block.text)
    assert isinstance(written, dict)
    complete = {"models", "pipelines"} <= set(written) and {"servers", "launch"} & set(written)
    settings = written if complete else merged(BASE, written)
    repository = tmp_path / "models"
    for name in settings["models"]:
        (repository / name).mkdir(parents=True)
    if (settings.get("launch") or {}).get("model_repository") is not None:
        settings["launch"]["model_repository"] = str(repository)
    (tmp_path / "profiles").mkdir()
    for model in settings["models"].values():
        if isinstance(model["profile"], str):
            (tmp_path / model["profile"]).write_text(yaml.safe_dump(SURFACE), encoding="utf-8")
    for file in re.findall(r"[\w/-]+\.(?:pem|json|keys)", block.text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    shutil.copy(ROOT / "examples" / "kubernetes" / "manifests" / "triton-pod.yaml", tmp_path)
    path = tmp_path / "themis.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    config = load_settings(path)
    assert {pipeline.name for pipeline in config.pipelines} == set(settings["pipelines"])


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`; a `profile` is replaced as a whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "profile"
        result[key] = merged(base[key], value) if both else value
    return result


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_a_console_block_holds_commands_that_exist(block: Block) -> None:
    for words in block.commands:
        check_command(words, complete=True)


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_inline_commands_exist(document: Path) -> None:
    for text in spans(document):
        words = text.split()
        if (words[0] == "themis" and len(words) > 1) or words[0].startswith("scripts/"):
            check_command(words, complete=False)


def check_command(words: list[str], *, complete: bool) -> None:
    """Fail unless the command line can be parsed; `complete`: with all that the command requires."""
    words = words[: words.index(">")] if ">" in words else words
    program, *arguments = words
    name = program.removeprefix(".venv/bin/")
    if name == "themis":
        check_themis(arguments, complete=complete)
    elif name.startswith("scripts/"):
        check_script(name, arguments)
    elif name == "pip" and "-r" in arguments:
        assert (ROOT / arguments[-1]).is_file(), words
    elif name == "pip":
        check_extras(arguments[-1])
    elif name in {"python", "python3"} and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, words
    elif name == "python":
        assert (ROOT / arguments[0]).is_file(), words
    else:
        assert name == "export", f"{words}: no test knows this program"


def check_themis(arguments: list[str], *, complete: bool) -> None:
    group: Any = typer.main.get_command(cli.app)
    if len(arguments) == 1 and any(arguments[0] in option.opts for option in group.params):
        return
    commands = group.commands
    assert arguments[0] in commands, f"themis {arguments[0]} does not exist"
    try:
        with commands[arguments[0]].make_context(arguments[0], arguments[1:]) as parsed:
            policies = str(parsed.params.get("policies", ""))
    except typer.BadParameter as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise
        return
    assert {name for name in policies.split(",") if name} <= {*map(str, PolicyName), "clairvoyant"}


def check_script(name: str, arguments: list[str]) -> None:
    path = ROOT / name
    assert path.is_file(), name
    if name == "scripts/demo":
        check_themis(["demo", *arguments], complete=True)
    for word in arguments:
        assert name == "scripts/demo" or not word.startswith("--") or word in path.read_text(encoding="utf-8"), (name, word)


def check_extras(requirement: str) -> None:
    extras = re.search(r"\[(.+)\]", requirement)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras is None or set(extras[1].split(",")) <= set(known), requirement


def quick_commands() -> list[tuple[str, list[str]]]:
    """Commands of the blocks that need no server, with where they stand."""
    outcome_found: dict[str, tuple[str, list[str]]] = {}
    for block in of("console"):
        for words in block.commands:
            needs_server = "--live" in words or "live" in words or (words[1:2] == ["init"] and "--from" in words)
            if words[0] == "themis" and words[1] in QUICK and not needs_server:
                outcome_found.setdefault(" ".join(words), (str(block), words))
    return list(outcome_found.values())


@pytest.mark.parametrize(("where", "words"), quick_commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_commands_that_need_no_server_run(where: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if words[1] != "init":
        Path("themis.yaml").write_text(session_settings(), encoding="utf-8")
    arguments = words[1 : words.index(">")] if ">" in words else words[1:]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, f"{where}: {result.output}"
    assert result.output.strip()


# Names


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_keys_in_the_text_exist(document: Path) -> None:
    """A dotted key whose first part is a section, and any single word that ends in a unit."""
    keys = {re.sub(r"\[\]", "", row.key) for row in reference_rows()}
    last = {key.split(".")[-1] for key in keys}
    unit = re.compile(r"^[a-z_]{3,}_(s|ms|us|rps|sigmas|fraction|factor|threshold|max|instances|servers)$")
    for text in spans(document):
        key = text.split(":")[0].strip()
        if re.fullmatch(r"[a-z_]+(\.[A-Za-z_]+)+", key) and key.split(".")[0] in SETTINGS_SECTIONS:
            assert key in keys, f"{document.name}: {key} is no settings key"
        elif unit.match(key) and not key.startswith("themis_") and document.name != "glossary.md":
            assert key in last, f"{document.name}: {key} is no settings key"


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_links_in_the_text_exist(document: Path) -> None:
    for target in links(document):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
    for text in spans(document):
        if re.match(r"(themis_triton|scripts|benchmarks|tests|deploy|docs|examples)/[\w./-]+$", text):
            assert (ROOT / text).exists(), f"{document.name}: {text}"
        elif re.match(r"(core|settings|decide|adapters|daemon|plan|act|estimate|solver|sim)/[\w./-]+$", text):
            assert (ROOT / "themis_triton" / text).exists(), f"{document.name}: {text}"


def test_the_documents_name_the_metrics_that_exist() -> None:
    exported = {line.split()[2] for line in Exporter().text().decode().splitlines() if line.startswith("# TYPE")}
    exported = {name for name in exported if name.startswith("themis_")}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(themis_\w+)` \|", text, re.MULTILINE)) == exported


def glossary() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| `(.+?)` \|$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [(term, meaning, name) for term, meaning, name in rows]


def test_the_glossary_has_each_term_once_in_order() -> None:
    terms = [term.lower() for term, _, _ in glossary()]
    assert len(terms) > 60
    assert terms == sorted(set(terms), key=lambda term: term.replace("-", " "))


def test_the_names_of_the_glossary_are_those_of_the_code() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "themis_triton").rglob("*.py")]
    words = {word for source in sources for word in re.findall(r"[A-Za-z_]+", source)}
    words |= {f"{word.removesuffix('_total')}" for word in words}
    assert [name for _, _, name in glossary() if name not in words] == []


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_mutation_scores_are_those_of_the_last_run() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks" / "results" / "mutation.json").read_text(encoding="utf-8"))
    for package, score in result["packages"].items():
        assert f"| `{package}` | {score['mutants']:,} | {score['killed_percent']} % |" in text
    assert f"Together {result['killed_percent']} % are caught" in text
