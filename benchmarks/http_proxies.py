"""Minimal streaming proxies to measure against: the least that a proxy in Python can do.

Run as a file with the interpreter of an environment that has aiohttp, fastapi, httpx and uvicorn:

    PYTHON benchmarks/http_proxies.py aiohttp|fastapi PORT BACKEND_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any


def run_aiohttp(port: int, backend: str) -> None:
    """aiohttp on both sides."""
    from aiohttp import ClientSession, TCPConnector, web

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(connector=TCPConnector(limit=0)) as app["session"]:
            yield

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with request.app["session"].request(request.method, backend + request.path, data=body) as answer:
            reply = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await reply.prepare(request)
            async for piece in answer.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def run_fastapi(port: int, backend: str) -> None:
    """FastAPI in front, httpx behind."""
    import httpx
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=2048)
    client = httpx.AsyncClient(base_url=backend, timeout=None, limits=limits)

    async def forward(request: Any) -> Any:
        ask = client.build_request(request.method, request.url.path, content=await request.body())
        answer = await client.send(ask, stream=True)

        async def pieces() -> AsyncIterator[bytes]:
            async for piece in answer.aiter_raw():
                yield piece
            await answer.aclose()

        return StreamingResponse(pieces(), status_code=answer.status_code, media_type=answer.headers["content-type"])

    app = FastAPI()
    app.add_route("/{path:path}", forward, methods=["GET", "POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    {"aiohttp": run_aiohttp, "fastapi": run_fastapi}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
