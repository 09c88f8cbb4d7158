from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.peer.compare import CALL, CHAT, TOOLS, ask, both, equal, equal_stream, stops
from tests.peer.conftest import Pair, foreserve, llamacpp_server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

COLD = {"cache_prompt": False}
"""llama.cpp's own field, unknown to us: with it two runs of one prompt are equal to the last figure."""


def test_a_reply_equals_the_direct_one_and_unknown_fields_arrive(llamacpp: Pair) -> None:
    reply = equal(llamacpp, ask("Name three colours.", **COLD))
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert reply["choices"][0]["message"]["content"]


def test_seeded_sampling_and_logprobs(llamacpp: Pair) -> None:
    equal(llamacpp, ask("Tell a story.", temperature=0.9, seed=7, logprobs=True, top_logprobs=3, n_probs=3, **COLD))


def test_text_completion(llamacpp: Pair) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": 8, "temperature": 0, **COLD}
    equal(llamacpp, body, "/v1/completions")
    equal_stream(llamacpp, body, "/v1/completions")


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_streamed_deltas_equal_the_direct_ones(llamacpp: Pair, options: dict[str, object]) -> None:
    said = equal_stream(llamacpp, ask("Grüße auf Japanisch? 😀", **COLD, **options))
    assert said[-1] == "[DONE]"
    assert any(chunk.get("usage") for chunk in said[:-1]) == bool(options)
    assert "timings" in said[-2]


def test_structured_output(llamacpp: Pair) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    reply = equal(llamacpp, ask("Give a number.", response_format=form, max_tokens=100, **COLD))
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"])["n"], int)


def test_tool_calls_whole_and_streamed(llamacpp: Pair) -> None:
    body = ask(CALL, tools=TOOLS, tool_choice="required", max_tokens=100, **COLD)
    reply = equal(llamacpp, body)
    call = reply["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"])["city"] in ("Zürich", "Tokyo")
    said = equal_stream(llamacpp, body)
    assert any("tool_calls" in choice["delta"] for chunk in said[:-1] for choice in chunk["choices"])


@pytest.mark.parametrize(
    "body",
    [
        ask("word " * 5000),
        ask("x", temperature="hot"),
        ask("x", tools="no list"),
        {"messages": "none"},
        ask("x", response_format={"type": "nonsense"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_passed_unchanged(llamacpp: Pair, body: dict[str, object], stream: bool) -> None:
    direct, through = both(llamacpp, body | {"stream": stream})
    assert direct.status_code >= 400
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert through.headers["content-type"] == direct.headers["content-type"]


def test_paths_of_its_own(llamacpp: Pair) -> None:
    direct, through = both(llamacpp, {"input": "x"}, "/v1/embeddings")
    assert (through.status_code, through.content) == (direct.status_code, direct.content) == (501, direct.content)
    direct, through = both(llamacpp, {"messages": [{"role": "user", "content": "x"}]}, CHAT + "/input_tokens")
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    for url in (llamacpp.direct, llamacpp.through):
        assert httpx.get(url + "/v1/nothing").status_code == 404


def test_embeddings(logs: Path) -> None:
    with (
        llamacpp_server(logs / "embed.log", "embedding") as direct,
        foreserve(logs / "front-embed.log", direct) as through,
    ):
        model = httpx.get(through + "/v1/models").json()["data"][0]["id"]
        reply = equal(Pair(direct, through, model), {"input": ["a cat", "ein Hund"]}, "/v1/embeddings")
        assert len(reply["data"]) == 2


def test_a_client_that_leaves_stops_it(llamacpp: Pair) -> None:
    body = ask("Write a very long story.", max_tokens=1500, ignore_eos=True)
    stops(llamacpp, "llamacpp:requests_processing", "llamacpp:tokens_predicted_total", body)


def test_observing_changes_nothing(logs: Path, llamacpp: Pair) -> None:
    with foreserve(logs / "observe.log", llamacpp.direct, options=("--observe", "--max-running", "1")) as url:
        pair = Pair(llamacpp.direct, url, llamacpp.model)
        equal(pair, ask("Name three colours.", **COLD))
        equal_stream(pair, ask("Name three colours.", **COLD))
        report = next(iter(httpx.get(url + "/v1/foreserve/observe").json()["services"].values()))
        assert (report["requests"], report["at_once"]) == (2, 2)
