"""Minimal streaming proxies to measure against: the least that a proxy in Python can do.

Run as a file with the interpreter of an environment that has aiohttp, fastapi, httpx, uvicorn and ray[serve]:

    PYTHON benchmarks/http_proxies.py aiohttp|fastapi|serve PORT BACKEND_URL
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


def forwarding_app(backend: str) -> Any:
    """FastAPI in front, httpx behind."""
    import httpx
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=2048)
    client = httpx.AsyncClient(base_url=backend, timeout=None, limits=limits, trust_env=False)

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
    return app


def run_fastapi(port: int, backend: str) -> None:
    """In one process."""
    import uvicorn

    uvicorn.run(forwarding_app(backend), host="127.0.0.1", port=port, log_level="error")


def run_serve(port: int, backend: str) -> None:
    """The same application as a deployment of Ray Serve: its proxy in front, one replica behind."""
    import threading

    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0.1})

    @deployment
    @serve.ingress(lambda: forwarding_app(backend))
    class Forward:
        pass

    serve.run(Forward.bind(), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    {"aiohttp": run_aiohttp, "fastapi": run_fastapi, "serve": run_serve}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
