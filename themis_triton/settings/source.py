"""YAML as plain data with the line and column of each key, for the errors of later checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from themis_triton.settings.problem import Problem

KeyPath = tuple[str | int, ...]
MERGE_TAG = "tag:yaml.org,2002:merge"
NO_VALUE = "nothing"
INIT_HINT = "`themis init` writes a file to start from"


@dataclass(frozen=True, slots=True)
class Place:
    """Position of one key path: its key, its value, and the value as written."""

    file: str
    key_line: int
    key_column: int
    line: int
    column: int
    written: str


@dataclass(slots=True)
class Source:
    """One settings file and the files that it includes: `data` as plain values, `places` by key path, `problems` of the YAML syntax."""

    file: str
    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """The place of the key path, or of its nearest ancestor in the file."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(self.file, 1, 1, 1, 1, NO_VALUE)

    def problem(self, path: KeyPath, error: str | None, expected: str, fix: str, *, at_key: bool = False) -> Problem:
        """A problem at the key path; `error` None: the value as written is invalid."""
        place = self.place(path)
        line, column = (place.key_line, place.key_column) if at_key else (place.line, place.column)
        return Problem(place.file, line, column, dotted(path), _invalid(place.written) if error is None else error, expected, fix)


def dotted(path: KeyPath) -> str:
    """`a.b[0].c`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _invalid(written: str) -> str:
    return "no value" if written == NO_VALUE else f"{written} is invalid"


def read_source(path: Path, shown: str, expected: str) -> Source:
    """The content of a YAML file, with every syntax error in `problems`; nothing is raised.

    `shown` is the file's name in errors; `expected` describes the whole file.
    """
    source = Source(shown)
    text = _read_text(path, source)
    if text is None:
        return source
    try:
        _compose(text, source, expected)
    except yaml.YAMLError as error:
        source.problems.append(_yaml_problem(error, source.file, text))
    except RecursionError:
        source.problems.append(Problem(shown, 1, 1, "", "lists or mappings are nested too deeply", expected, "remove the nesting"))
    return source


def _read_text(path: Path, source: Source) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        fault = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        source.problems.append(Problem(source.file, line, None, "", fault, "text in UTF-8", "save the file as UTF-8"))
    except OSError as error:
        fault = f"file cannot be read ({error.strerror})"
        source.problems.append(Problem(source.file, None, None, "", fault, "a readable file", f"correct the path; {INIT_HINT}"))
    return None


def _compose(text: str, source: Source, expected: str) -> None:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            source.problems.append(Problem(source.file, 1, 1, "", "file is empty", expected, INIT_HINT))
            return
        source.data = _Walk(loader, source).value(root, (), root)
    finally:
        loader.dispose()
    if not isinstance(source.data, dict):
        source.problems.append(source.problem((), None, expected, "start with keys such as `models:`"))
        source.data = None


@dataclass(slots=True)
class _Walk:
    """Turns the node tree into plain data and fills in `places`. Anchors and `<<` merges work; an alias to itself is an error."""

    loader: yaml.SafeLoader
    source: Source
    open_nodes: set[int] = field(default_factory=set)

    def value(self, node: Node, path: KeyPath, key: Node) -> object:
        mark, key_mark = node.start_mark, key.start_mark
        place = Place(self.source.file, key_mark.line + 1, key_mark.column + 1, mark.line + 1, mark.column + 1, _as_written(node))
        self.source.places[path] = place
        if id(node) in self.open_nodes:
            self._report(path, "alias refers to the mapping or list that contains it", "a finite value", "write the value out")
            return None
        self.open_nodes.add(id(node))
        try:
            return self._inside(node, path)
        finally:
            self.open_nodes.discard(id(node))

    def _inside(self, node: Node, path: KeyPath) -> object:
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index), item) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except ValueError:  # A date or a number that does not exist is a string.
            return node.value

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        self._duplicates(node, path)
        self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key, value in node.value:
            name = self._name(key, path)
            result[name] = self.value(value, (*path, name), key)
        return result

    def _name(self, key: Node, path: KeyPath) -> str:
        if isinstance(key, ScalarNode) and key.tag.endswith(":str"):
            return str(key.value)
        name = str(key.value) if isinstance(key, ScalarNode) else "?"
        mark = key.start_mark
        self.source.problems.append(
            Problem(
                self.source.file,
                mark.line + 1,
                mark.column + 1,
                dotted((*path, name)),
                f"key {name} is not a string",
                "a string",
                "put the key in quotes",
            )
        )
        return name

    def _duplicates(self, node: MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag == MERGE_TAG:
                continue
            mark = key.start_mark
            if key.value in first:
                fault = f"duplicate of line {first[key.value]}"
                where = dotted((*path, key.value))
                fix = "rename or remove one of the two"
                self.source.problems.append(Problem(self.source.file, mark.line + 1, mark.column + 1, where, fault, "each name once", fix))
            first.setdefault(key.value, mark.line + 1)

    def _report(self, path: KeyPath, error: str, expected: str, fix: str) -> None:
        self.source.problems.append(self.source.problem(path, error, expected, fix))


def _as_written(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "a mapping" if isinstance(node, MappingNode) else "a list"
    if node.tag.endswith(":null"):
        return NO_VALUE
    return f'"{node.value}"' if node.style in ("'", '"') else str(node.value)


def _yaml_problem(error: yaml.YAMLError, file: str, text: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        position = getattr(error, "position", 0)
        fault = f"character {text[position : position + 1]!r} is invalid"
        return Problem(file, text[:position].count("\n") + 1, None, "", fault, "printable text", "remove the character")
    mark = error.problem_mark or error.context_mark
    opened = error.context_mark
    start = f" that starts on line {opened.line + 1}" if opened is not None and mark is not None and opened.line != mark.line else ""
    fault = f"{error.context}{start}: {error.problem}" if error.context else str(error.problem)
    fix = "correct the YAML here or on the line above"
    if mark is not None and "\t" in _line(text, mark.line):
        fix = "replace the tab on this line with spaces"
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
    return Problem(file, line, column, "", f"YAML syntax error ({fault})", "valid YAML", fix)


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number] if number < len(lines) else ""
