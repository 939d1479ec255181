"""Answers as a Triton with two models, as fast as Python can, for `scale.py`; prints its port and runs until it is ended."""

from __future__ import annotations

import asyncio

from scale_pages import metrics_page, statistics_page

MODELS = ("model-0000", "model-0001")
BACKLOG = 1024


def _answer(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


PAGES = {b"/metrics": _answer(metrics_page(MODELS)), b"/v2/models/stats": _answer(statistics_page(MODELS))}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(PAGES[head.split(b" ", 2)[1]])
            await writer.drain()
            if b"Connection: close" in head:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client is gone
    finally:
        writer.close()


async def main() -> None:
    """Listen on a free port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
