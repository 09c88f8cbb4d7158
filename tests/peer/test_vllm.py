from __future__ import annotations

import httpx
import pytest

from tests.peer.compare import TOOLS, ask, both, equal, equal_stream, gauge, stops
from tests.peer.conftest import Pair

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]


def test_a_reply_equals_the_direct_one_and_unknown_fields_arrive(vllm: Pair) -> None:
    reply = equal(vllm, ask("Name three colours.", min_tokens=24, ignore_eos=True))
    assert reply["usage"]["completion_tokens"] == 24


def test_seeded_sampling_and_logprobs(vllm: Pair) -> None:
    equal(vllm, ask("Tell a story.", temperature=0.9, seed=7, logprobs=True, top_logprobs=3, n=2))


def test_text_completion(vllm: Pair) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    equal(vllm, body, "/v1/completions")
    equal_stream(vllm, body, "/v1/completions")


@pytest.mark.parametrize(
    "options", [{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
def test_streamed_deltas_equal_the_direct_ones(vllm: Pair, options: dict[str, object]) -> None:
    before = gauge(vllm.through, "foreserve_output_tokens_total")
    said = equal_stream(vllm, ask("Grüße auf Japanisch? 😀", **({"stream_options": options} if options else {})))
    assert said[-1] == "[DONE]"
    assert any(chunk.get("usage") for chunk in said[:-1]) == bool(options)
    assert 0 < gauge(vllm.through, "foreserve_output_tokens_total") - before <= 24


def test_several_streamed_answers(vllm: Pair) -> None:
    equal_stream(vllm, ask("Name a colour.", n=2, temperature=0.8, seed=3, max_tokens=5))


def test_structured_output(vllm: Pair) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    equal(vllm, ask("Give a number.", response_format=form, max_tokens=40))


def test_tool_calls_whole_and_streamed(vllm: Pair) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = ask("What is the weather in Tokyo?", tools=TOOLS, tool_choice=choice, max_tokens=60)
    reply = equal(vllm, body)
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    said = equal_stream(vllm, body)
    assert any(choice["delta"].get("tool_calls") for chunk in said[:-1] for choice in chunk["choices"])


@pytest.mark.parametrize(
    "body",
    [ask("word " * 5000), ask("x", temperature=-3), {"messages": "none"}, ask("x", tools=[{"type": "nonsense"}])],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_passed_unchanged(vllm: Pair, body: dict[str, object], stream: bool) -> None:
    direct, through = both(vllm, body | {"stream": stream})
    assert direct.status_code == 400
    assert (through.status_code, through.content) == (direct.status_code, direct.content)


def test_the_responses_and_messages_apis(vllm: Pair) -> None:
    body = {"input": "Name three colours.", "temperature": 0, "max_output_tokens": 16}
    direct, through = both(vllm, body, "/v1/responses")
    assert through.status_code == direct.status_code == 200
    said = [answer.json()["output"][0]["content"][0]["text"] for answer in (direct, through)]
    assert said[0] == said[1]


def test_paths_of_its_own(vllm: Pair) -> None:
    direct, through = both(vllm, {"input": "x"}, "/v1/embeddings")
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert httpx.get(vllm.through + "/v1/nothing").status_code == 404


def test_a_client_that_leaves_stops_it(vllm: Pair) -> None:
    body = ask("Write a very long story.", max_tokens=1500, ignore_eos=True)
    stops(vllm, "vllm:num_requests_running", "vllm:generation_tokens_total", body)
