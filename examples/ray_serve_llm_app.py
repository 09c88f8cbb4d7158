"""Foreserve's request router and autoscaling policy under Ray Serve's own LLM deployments, by configuration alone.

    pip install 'foreserve[ray]' 'ray[llm]>=2.60,<2.61' 'fastapi<0.137'
    MODEL=/models/llama serve run examples.ray_serve_llm_app:app
    curl 127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "chat", "messages": [{"role": "user", "content": "Say hello."}]}'

vLLM runs on as many GPUs as `tensor_parallel_size`. Serve's ingress parses what comes by HTTP and calls the model's
deployment with the request, which is where the router reads prompt and limit. See docs/cluster.md.
"""

import os
from typing import Any

from ray.serve.config import AutoscalingPolicy, RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app

MAX_RUNNING = 64

ROUTER = RequestRouterConfig(
    request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
    # What one replica's KV cache holds (vLLM logs it at its start), and how fast it is when it is not busy.
    request_router_kwargs={"kv_tokens": 200_000, "token_s": 0.0001, "step_s": 0.02},
    max_backoff_s=0.1,
)

SCALING: dict[str, Any] = {
    "min_replicas": 1,
    "max_replicas": 4,
    "target_ongoing_requests": 32,
    "upscale_delay_s": 0,  # Serve's delays hold for this policy too
    "policy": AutoscalingPolicy(
        policy_function="foreserve.integrations.ray_serve_scaling:ForecastPolicy",
        policy_kwargs={"forecaster": "smoothing", "horizon_s": 60.0},  # what a replica takes to start
    ),
}

CHAT = LLMConfig(
    model_loading_config={"model_id": "chat", "model_source": os.environ.get("MODEL", "/models/llama")},
    engine_kwargs={"max_num_seqs": MAX_RUNNING, "tensor_parallel_size": 1, "max_model_len": 8192},
    deployment_config={
        "max_ongoing_requests": MAX_RUNNING,
        "request_router_config": ROUTER,
        "autoscaling_config": SCALING,
    },
)

app = build_openai_app({"llm_configs": [CHAT]})
