"""One request in vLLM's words and back; vLLM itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from foreserve.core import Forecast, Length, Work
from foreserve.engines.generation import Generate, Tokens
from foreserve.engines.vllm_request import URGENCY, VLLMRequest, priority_of, sampling


def payload(**changed) -> Generate:
    return Generate(**{"prompt": [1, 2, 3], "max_tokens": 100, "stop_tokens": (2,), **changed})


def work(mean: float | None = None) -> Work:
    length = Length(mean=mean or 1, p50=1, p80=1, p95=1, source="full")
    forecast = Forecast(input_tokens=3, output=length, most_tokens=100, seconds=1.0)
    return Work(id="a", payload=None, cost={}, arrival=0.0, forecast=None if mean is None else forecast)


def test_shortest_first_within_its_class():
    assert priority_of(work(), payload(), None) == 100
    assert priority_of(work(30.4), payload(), None) == 30
    assert priority_of(work(300.0), payload(), None) == 100
    assert priority_of(work(30.0), payload(predicted_tokens=7), None) == 7
    assert priority_of(work(30.0), payload(continued=12), None) == 18
    assert priority_of(work(30.0), payload(continued=50), None) == 0
    urgent = priority_of(work(90.0), payload(priority=-1), None)
    assert urgent == 90 - URGENCY < priority_of(work(1.0), payload(), None)


def test_the_dispatchers_own_order_goes_before_all():
    assert priority_of(work(30.0), payload(priority=4), {"priority": 17}) == 17
    assert priority_of(work(30.0), payload(), {"most_tokens": 17}) == 30


def test_only_the_requests_own_stop_tokens_count():
    assert (sampling(payload())["stop_token_ids"], sampling(payload())["ignore_eos"]) == ([2], True)
    ignoring = sampling(payload(ignore_eos=True))
    assert (ignoring["stop_token_ids"], ignoring["ignore_eos"]) == ([], True)
    held = sampling(payload(ignore_eos=True, json_schema="{}"))
    assert (held["stop_token_ids"], held["ignore_eos"]) == ([2], False)


def test_a_seed_fits_what_vllm_takes():
    assert sampling(payload(seed=2**63 + 5))["seed"] == 5
    assert sampling(payload())["seed"] is None


def output(ids, finish=None, finished=None, logprobs=None, cached=None):
    said = SimpleNamespace(token_ids=ids, finish_reason=finish, logprobs=logprobs)
    finished = finish is not None if finished is None else finished
    return SimpleNamespace(outputs=[said], finished=finished, num_cached_tokens=cached)


def test_a_stop_token_is_counted_and_not_given_out():
    request = VLLMRequest(work(), payload())
    first = request.chunk(output([5, 6], cached=16))
    last = request.chunk(output([7, 2], "stop"))
    assert (first.data, first.finish) == (Tokens(ids=[5, 6]), None)
    assert (last.index, last.data.ids, last.finish.reason) == (1, [7], "stop")
    assert last.finish.usage == {"prompt_tokens": 3.0, "output_tokens": 4.0, "cached_tokens": 16.0}
    assert VLLMRequest(work(), payload()).chunk(output([])) is None


@pytest.mark.parametrize(("cancelled", "reason"), [(True, "cancelled"), (False, "error")])
def test_an_abort_is_a_cancel_only_where_one_was_asked_for(cancelled, reason):
    request = VLLMRequest(work(), payload())
    request.cancelled = cancelled
    assert request.chunk(output([], "abort")).finish.reason == reason


def test_log_probabilities_and_rivals():
    def told(**by_token):
        return {int(token[1:]): SimpleNamespace(logprob=value) for token, value in by_token.items()}

    positions = [told(t9=-3.0, t5=-0.5, t6=-1.0), told(t5=-0.25, t6=-2.0)]
    both = VLLMRequest(work(), payload(logprobs=2)).chunk(output([9, 5], logprobs=positions))
    assert both.data.logprobs == [-3.0, -0.25]
    assert both.data.top == [[(5, -0.5), (6, -1.0)], [(5, -0.25), (6, -2.0)]]
    chosen = VLLMRequest(work(), payload(logprobs=0)).chunk(output([9, 5], logprobs=positions))
    assert (chosen.data.logprobs, chosen.data.top) == ([-3.0, -0.25], None)
