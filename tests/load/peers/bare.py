"""A bare FastAPI route: decode on a thread, one lock around the engine, no batches."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from tests.load.peers.work import Work, cost_of, options


def create_app(work: Work) -> FastAPI:
    """The route."""
    app = FastAPI()
    lock = asyncio.Lock()

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        pixels = await run_in_threadpool(work.decode, await request.body())
        async with lock:
            [answer] = await run_in_threadpool(work.infer, [pixels])
        return answer

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


if __name__ == "__main__":
    arguments = options()
    uvicorn.run(create_app(Work(cost_of(arguments))), port=arguments.port, access_log=False)
