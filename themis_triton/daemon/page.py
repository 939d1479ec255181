"""The web page: its files, from the package, with headers that let a browser load nothing else."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web

from themis_triton.daemon.page_bundle import bundled

PAGE = "page"
INDEX, ENTRY, STYLES = "index.html", "main.js", "app.css"
LIBRARY, LIBRARY_STYLES = "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css"
PAGE_PATHS = "/page/"
"""Below it are all files but the page itself, which is at `/`."""
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[web.RouteDef]:
    """`/` and the files that it loads, few and compressed where a browser takes that. They are read once; nothing in them is secret."""
    content = dict(_read(files("themis_triton") / PAGE))
    modules = {name: data.decode() for name, data in content.items() if name.endswith(".js") and "/" not in name}
    content[ENTRY] = bundled(modules, ENTRY, content[LIBRARY].decode()).encode()
    content[STYLES] = content[LIBRARY_STYLES] + b"\n" + content[STYLES]
    routes = [web.get("/", _file(INDEX, content[INDEX]))]
    return routes + [web.get(f"{PAGE_PATHS}{name}", _file(name, data)) for name, data in content.items() if name != INDEX]


def _read(directory: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in sorted(directory.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            yield from _read(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in TYPES:
            yield f"{prefix}{entry.name}", entry.read_bytes()


def _file(name: str, data: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    tag, packed = hashlib.sha256(data).hexdigest()[:16], gzip.compress(data, mtime=0)
    headers = HEADERS | {"Content-Type": TYPES[name.rpartition(".")[2]], "ETag": f'"{tag}"', "Vary": "Accept-Encoding"}

    async def answer(request: web.Request) -> web.StreamResponse:
        if any(each.value == tag for each in request.if_none_match or ()):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=HEADERS | {"ETag": headers["ETag"]})
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=packed, headers=headers | {"Content-Encoding": "gzip"})
        return web.Response(body=data, headers=headers)

    return answer
