"""The web page's files: all are served, none loads anything from elsewhere, and no text becomes markup."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from tests.unit.status_api import served
from themis_triton.daemon.page import HEADERS, TYPES
from themis_triton.daemon.page_bundle import bundled

PAGE = Path(str(files("themis_triton"))) / "page"
OWN_SCRIPTS = sorted(PAGE.glob("*.js"))
LOADED = re.compile(r'(?:src|href)="(page/[^"]+)"')
IMPORTED = re.compile(r'from "\./([^"]+)"')


def test_every_file_that_the_page_loads_is_served_with_its_type_and_may_load_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "journal.sqlite") as api:
            index = await api.client.get("../")
            assert index.headers["content-type"] == TYPES["html"]
            loaded = LOADED.findall(index.text)
            imported = {f"page/{name}" for script in OWN_SCRIPTS for name in IMPORTED.findall(script.read_text(encoding="utf-8"))}
            assert set(loaded) == {"page/main.js", "page/app.css", "page/theme.js", "page/icon.svg"}, "few requests"
            bundle = (await api.client.get("../page/main.js")).text
            for part in ("uPlot (v1.6.32)", "class Timeline", "class WhatIf"):
                assert bundle.count(part) == 1
            assert ".uplot" in (await api.client.get("../page/app.css")).text
            plain = await api.client.get("../page/main.js", headers={"Accept-Encoding": "identity"})
            assert (plain.text, plain.headers.get("content-encoding")) == (bundle, None)
            for path in {*loaded, *imported}:
                answer = await api.client.get(f"../{path}")
                assert (answer.status_code, answer.headers["content-type"]) == (200, TYPES[path.rpartition(".")[2]]), path
                assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
                again = await api.client.get(f"../{path}", headers={"If-None-Match": answer.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")

    asyncio.run(scenario())


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node")
def test_the_bundle_of_all_modules_is_a_module_that_can_be_parsed(tmp_path: Path) -> None:
    script = tmp_path / "main.mjs"
    modules = {path.name: path.read_text(encoding="utf-8") for path in OWN_SCRIPTS}
    script.write_text(bundled(modules, "main.js", "var uPlot = {};"), encoding="utf-8")
    ended = subprocess.run([str(NODE), "--check", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(ValueError, match=r"a\.js: cannot be bundled: export default 1"):
        bundled({"a.js": "export default 1\n"}, "a.js", "")


def test_the_policy_of_the_page_allows_its_own_files_alone() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}


@pytest.mark.parametrize("script", OWN_SCRIPTS, ids=lambda path: str(path.name))
def test_no_text_becomes_markup(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "javascript:"):
        assert word not in text, word


def test_the_page_names_no_other_host_and_has_no_inline_code() -> None:
    own = [PAGE / "index.html", PAGE / "app.css", *OWN_SCRIPTS]
    for path in own:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), path.name
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", index)


def test_the_vendored_library_has_its_licence_and_version() -> None:
    vendor = PAGE / "vendor"
    assert "uPlot (v1.6.32)" in (vendor / "uPlot.iife.min.js").read_text(encoding="utf-8")[:200]
    assert "MIT License" in (vendor / "uPlot-LICENSE.txt").read_text(encoding="utf-8")
