"""The page's own modules and the chart library as one script, so that a browser asks once: each request waits for the event loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_IMPORT = re.compile(r'^import (?:\* as (?P<name>\w+)|(?P<names>\{[\w, ]+\})) from "\./(?P<module>[\w.]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async function|function|class|const) (\w+))", re.MULTILINE)


def bundled(modules: Mapping[str, str], entry: str, library: str) -> str:
    """The module `entry` with all that it imports, each in a scope of its own, after a classic script.

    ValueError for an import or export that is neither `import {…} from "./x.js"` nor a named declaration.
    """
    parts = [_scoped(name, modules[name]) for name in _ordered(modules, entry, [])]
    return "\n".join([library, "const modules = {};", *parts]) + "\n"


def _ordered(modules: Mapping[str, str], name: str, done: list[str]) -> list[str]:
    """What a module imports, and then the module, each once."""
    for match in _IMPORT.finditer(modules[name]):
        if match["module"] not in done:
            _ordered(modules, match["module"], done)
    if name not in done:
        done.append(name)
    return done


def _scoped(name: str, text: str) -> str:
    exported = ", ".join(_EXPORT.findall(text))
    code = _EXPORT.sub("", _IMPORT.sub(lambda match: f'const {match["name"] or match["names"]} = modules["{match["module"]}"];', text))
    for line in _unknown(code):
        raise ValueError(f"{name}: cannot be bundled: {line}")
    return f'modules["{name}"] = (() => {{\n{code}return {{ {exported} }};\n}})();'


def _unknown(code: str) -> Iterator[str]:
    return (line for line in code.splitlines() if line.startswith(("import ", "export ")))
