"""Foreserve's request router and autoscaling policy in an app of Ray Serve, by configuration alone.

    pip install 'foreserve[ray]'
    serve run examples.ray_serve_app:app
    curl -N 127.0.0.1:8000 -d '{"prompt": "Say hello.", "max_tokens": 20}' -H 'content-type: application/json'

`Model` stands for an engine: it reads a prompt, then says a token a step, and gets slower the more it holds. `Front`
parses what comes by HTTP, since at Serve's proxy a router sees no body. See docs/cluster.md.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from starlette.requests import Request
from starlette.responses import StreamingResponse

ROUTER = RequestRouterConfig(
    request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
    # What one replica's cache holds, and how fast it is when it is not busy.
    request_router_kwargs={"kv_tokens": 4000, "token_s": 0.0001, "step_s": 0.02},
    max_backoff_s=0.1,
)

SCALING = AutoscalingConfig(
    min_replicas=1,
    max_replicas=3,
    target_ongoing_requests=8,
    upscale_delay_s=0,  # Serve's delays hold for this policy too
    policy=AutoscalingPolicy(
        policy_function="foreserve.integrations.ray_serve_scaling:ForecastPolicy",
        policy_kwargs={"forecaster": "smoothing", "horizon_s": 10.0, "window_s": 1.0},
    ),
)


@serve.deployment(
    max_ongoing_requests=16,
    request_router_config=ROUTER,
    autoscaling_config=SCALING,
    ray_actor_options={"num_cpus": 0.1},
)
class Model:
    def __init__(self) -> None:
        self.held = 0

    async def __call__(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        size = len(asked["prompt"]) // 4
        self.held += size
        try:
            await asyncio.sleep(0.0001 * size)
            for number in range(int(asked.get("max_tokens", 20))):
                await asyncio.sleep(0.02 * (1 + self.held / 4000))
                yield f"{number} "
        finally:
            self.held -= size


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Front:
    def __init__(self, model: Any) -> None:
        self.model = model.options(stream=True)

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._answer(await request.json()), media_type="text/plain")

    async def _answer(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        answer = self.model.remote(asked)
        try:
            async for token in answer:
                yield token
        finally:
            answer.cancel()  # or the model goes on after its reader has gone


app = Front.bind(Model.bind())
