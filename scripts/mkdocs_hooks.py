"""Adds benchmarks/results to the documentation site, so that pages can link there as they do in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def on_files(files: Files, *, config: Any) -> Files:  # noqa: ANN401 - MkDocs' own type is not exported
    """The site's files and those of benchmarks/results."""
    for path in sorted(RESULTS.rglob("*")):
        if path.is_file():
            uri = path.relative_to(ROOT).as_posix()
            files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:  # noqa: ANN401
    """The page with links to benchmarks/results as they are in the site, where docs/ is the root."""
    inside = page.file.src_uri.startswith("benchmarks/")
    return markdown if inside else markdown.replace("](../benchmarks/results/", "](benchmarks/results/")
