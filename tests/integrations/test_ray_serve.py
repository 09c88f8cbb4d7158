"""Contract tests: what Ray Serve, the pinned minor of it, does with our router and our policy, good ones and bad."""

import asyncio
import importlib.util
import inspect
import itertools
import sys
import time
from pathlib import Path

import pytest

from tests.ray_cluster import MARKS, small_cluster

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'foreserve[ray]'")

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig  # noqa: E402

from foreserve.integrations.ray_serve import AnticipatedRouter  # noqa: E402

NUMBERS = itertools.count()
ROUTER = "tests.integrations.test_ray_serve"
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve_app.py"


@pytest.fixture(scope="module")
def cluster():
    with small_cluster():
        serve.start(proxy_location="Disabled")
        yield
        serve.shutdown()


@pytest.fixture(autouse=True)
def no_apps():
    yield
    if serve.context._global_client is not None:
        for name in serve.status().applications:
            serve.delete(name)


class Faulty(AnticipatedRouter):
    """The guarded router with a policy that goes wrong in one of several ways, and counts how often it is asked."""

    asked = 0

    def initialize_state(self, way="", **options):
        super().initialize_state(**options)
        self.way = way

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        type(self).asked += 1
        return await super().choose_replicas(candidate_replicas, pending_request)

    def _ours(self, bookings, candidates, request):
        good = super()._ours(bookings, candidates, request)
        if self.way == "raises":
            raise ValueError("it went wrong")
        return [] if self.way == "nothing" else [*good, *good] if self.way == "twice" else good


@serve.deployment(ray_actor_options={"num_cpus": 0}, num_replicas=2, max_ongoing_requests=4)
class Echo:
    def __init__(self):
        self.name = serve.get_replica_context().replica_id.unique_id

    async def __call__(self, asked):
        await asyncio.sleep(asked.get("seconds", 0.0))
        return self.name

    async def stream(self, asked):
        for number in range(asked["items"]):
            await asyncio.sleep(asked.get("seconds", 0.0))
            yield number


def run(way=None, **options):
    words = {} if way is None else {"way": way}
    name = f"{ROUTER}:Faulty" if way is not None else "foreserve.integrations.ray_serve:AnticipatedRouter"
    config = RequestRouterConfig(request_router_class=name, request_router_kwargs=words, max_backoff_s=0.1)
    # Of its own name, since a handle of a name that is known may have that one's router for a while.
    app = f"echo-{next(NUMBERS)}"
    return serve.run(Echo.options(request_router_config=config, **options).bind(), name=app, route_prefix=None)


def router_of(handle):
    return handle._router._asyncio_router.request_router


def test_the_hooks_are_as_we_know_them():
    from ray.serve.request_router import RequestRouter

    assert list(inspect.signature(RequestRouter.choose_replicas).parameters) == [
        "self", "candidate_replicas", "pending_request"
    ]  # fmt: skip
    assert list(inspect.signature(RequestRouter.on_request_routed).parameters) == [
        "self", "pending_request", "replica_id", "result"
    ]  # fmt: skip
    assert list(inspect.signature(RequestRouter.on_request_completed).parameters) == [
        "self", "replica_id", "internal_request_id"
    ]  # fmt: skip
    config = RequestRouterConfig()
    assert (config.initial_backoff_s, config.backoff_multiplier, config.max_backoff_s) == (0.025, 2, 0.5)
    assert AutoscalingConfig().upscale_delay_s == 30


def test_bookings_return_to_nothing_after_answers_streams_and_cancels(cluster):
    handle = run()
    asked = {"prompt": "word " * 100, "max_tokens": 50}
    assert len({handle.remote(asked).result(timeout_s=20) for _ in range(4)}) >= 1
    bookings = router_of(handle).bookings
    stream = handle.options(stream=True, method_name="stream").remote({**asked, "items": 20, "seconds": 0.05})
    assert next(iter(stream)) == 0
    assert len(bookings) == 1  # a stream is done at its end, not at its first item
    assert list(stream) == list(range(1, 20))
    cut = handle.options(stream=True, method_name="stream").remote({**asked, "items": 1000, "seconds": 0.05})
    next(iter(cut))
    cut.cancel()
    deadline = time.monotonic() + 10
    while len(bookings) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(bookings) == 0
    assert router_of(handle).faults.count == 0


def test_a_long_booked_prompt_keeps_short_ones_away(cluster):
    handle = run()
    handle.remote({}).result(timeout_s=20)
    long = handle.remote({"prompt": "word " * 20_000, "max_tokens": 1000, "seconds": 3.0})
    time.sleep(0.3)
    short = {handle.remote({"prompt": "word", "max_tokens": 5}).result(timeout_s=20) for _ in range(20)}
    assert len(short) == 1
    assert long.result(timeout_s=20) not in short


@pytest.mark.parametrize("way", ["raises", "nothing", "twice"])
def test_a_faulty_policy_is_serves_own_choice(cluster, way):
    handle = run(way)
    assert [bool(handle.remote({}).result(timeout_s=10)) for _ in range(5)] == [True] * 5
    router = router_of(handle)
    assert router.way == way
    assert router.faults.count == (5 if way == "raises" else 0)


def test_wrong_settings_are_serves_own_choice(cluster):
    config = RequestRouterConfig(
        request_router_class="foreserve.integrations.ray_serve:AnticipatedRouter",
        request_router_kwargs={"placement": "oracle"},
    )
    handle = serve.run(Echo.options(request_router_config=config).bind(), name="wrong", route_prefix=None)
    assert handle.remote({}).result(timeout_s=10)


def test_full_replicas_are_asked_of_rarely(cluster):
    handle = run("", num_replicas=1, max_ongoing_requests=1)
    handle.remote({}).result(timeout_s=10)
    router = type(router_of(handle))
    before = router.asked
    answers = [handle.remote({"seconds": 0.7}) for _ in range(4)]
    assert len([answer.result(timeout_s=20) for answer in answers]) == 4
    assert router.asked - before < 200


def scaled(function, **words):
    policy = AutoscalingPolicy(policy_function=function, policy_kwargs=words)
    return AutoscalingConfig(
        min_replicas=1, max_replicas=2, upscale_delay_s=0, metrics_interval_s=0.2, look_back_period_s=1.0,
        target_ongoing_requests=1, policy=policy,
    )  # fmt: skip


FORECAST = "foreserve.integrations.ray_serve_scaling:ForecastPolicy"


def deployed(name, config):
    words = Echo.options(num_replicas=None, autoscaling_config=config)
    return serve.run(words.bind(), name=name, route_prefix=None)


def replicas(name):
    return serve.status().applications[name].deployments["Echo"].replica_states.get("RUNNING", 0)


def test_the_forecast_policy_scales_up_within_seconds(cluster):
    handle = deployed("scaled", scaled(FORECAST, window_s=0.5, horizon_s=2.0))
    answers = [handle.remote({"seconds": 8.0}) for _ in range(4)]
    deadline = time.monotonic() + 20
    while replicas("scaled") < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert replicas("scaled") == 2
    assert len([answer.result(timeout_s=30) for answer in answers]) == 4


def test_a_policy_with_wrong_settings_keeps_its_target_and_hinders_nobody(cluster):
    handle = deployed("wrong", scaled(FORECAST, forecaster="oracle"))
    assert handle.remote({}).result(timeout_s=20)
    other = deployed("other", scaled(FORECAST))
    assert other.remote({}).result(timeout_s=20)
    assert replicas("wrong") == 1


def test_the_example_serves(cluster):
    found = importlib.util.spec_from_file_location("ray_serve_app", EXAMPLE)
    example = importlib.util.module_from_spec(found)
    sys.modules["ray_serve_app"] = example
    found.loader.exec_module(example)
    handle = serve.run(example.Model.bind(), name="example", route_prefix=None)
    answer = handle.options(stream=True).remote({"prompt": "Say hello.", "max_tokens": 5})
    assert "".join(answer) == "0 1 2 3 4 "
