from __future__ import annotations

from typing import Any

import msgspec
import pytest

from foreserve.core import EngineInfo
from foreserve.engines.generation import FEATURES
from foreserve.errors import BadRequest, ContextExceeded
from foreserve.services.llm_prompt import CHARS_PER_TOKEN, Limits, Sampling, check_length, generate
from foreserve.services.llm_text import ByteText

ALL = Limits(context_tokens=100, features=FEATURES, vocabulary=257)


def test_everything_asked_for_reaches_the_engine():
    wanted = Sampling(
        max_tokens=5, temperature=0.5, top_p=0.4, seed=3, logprobs=2, frequency_penalty=1.0, presence_penalty=-1.0,
        stop=("x",), json_schema="{}",
    )  # fmt: skip
    made = generate([1, 2], wanted, ALL, (256,), "prompt")
    asked = {
        name: getattr(wanted, name)
        for name in Sampling.__struct_fields__
        if name not in ("usual_tokens", "max_tokens_param", "top_logprobs_param")
    }
    assert {name: getattr(made, name) for name in asked} == asked
    assert (made.prompt, made.stop_tokens) == ([1, 2], (256,))
    assert generate([1], Sampling(ignore_eos=True), ALL, (256,), "prompt").stop_tokens == ()


@pytest.mark.parametrize(
    ("wanted", "default", "expected"),
    [
        (Sampling(), None, 90),
        (Sampling(), 20, 20),
        (Sampling(), 200, 90),
        (Sampling(usual_tokens=16), None, 16),
        (Sampling(usual_tokens=16), 30, 30),
        (Sampling(max_tokens=90), 20, 90),
    ],
)
def test_how_long_an_answer_may_be(wanted: Sampling, default: int | None, expected: int):
    limits = Limits(context_tokens=100, features=(), vocabulary=257, default_max_tokens=default)
    assert generate([1] * 10, wanted, limits, (), "prompt").max_tokens == expected


def test_what_does_not_fit_names_the_room_left():
    with pytest.raises(ContextExceeded, match="room for 90") as caught:
        generate([1] * 10, Sampling(max_tokens=91), ALL, (), "messages")
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextExceeded, match="100 tokens") as caught:
        generate([1] * 100, Sampling(), ALL, (), "messages")
    assert caught.value.param == "messages"
    check_length(100 * CHARS_PER_TOKEN, ALL, "prompt")
    with pytest.raises(ContextExceeded):
        check_length(100 * CHARS_PER_TOKEN + 1, ALL, "prompt")


@pytest.mark.parametrize("prompt", [[], [257], [-1]])
def test_token_ids_must_be_the_models(prompt: list[int]):
    with pytest.raises(BadRequest) as caught:
        generate(prompt, Sampling(), ALL, (), "prompt")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("words", "param"),
    [
        ({"logprobs": 0}, "logprobs"), ({"json_schema": "{}"}, "response_format"), ({"seed": 0}, "seed"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"), ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)  # fmt: skip
def test_what_the_engine_lacks_is_refused(words: dict[str, Any], param: str):
    limits = Limits(context_tokens=100, features=(), vocabulary=257)
    with pytest.raises(BadRequest, match="not supported") as caught:
        generate([1], Sampling(**words), limits, (), "prompt")
    assert caught.value.param == param


def test_rivals_of_a_token_are_a_feature_of_their_own():
    limits = Limits(context_tokens=100, features=("logprobs",), vocabulary=257)
    assert generate([1], Sampling(logprobs=0), limits, (), "prompt").logprobs == 0
    with pytest.raises(BadRequest, match="top_logprobs"):
        generate([1], Sampling(logprobs=1), limits, (), "prompt")


def test_limits_are_the_least_of_all():
    def limit(context: int | None, fact: int | None, kv: float | None) -> int:
        facts = {} if fact is None else {"context_tokens": fact}
        capacity = {"slots": 1.0} if kv is None else {"slots": 1.0, "kv_tokens": kv}
        info = EngineInfo(batching="continuous", capacity=capacity, facts=facts)
        return Limits.of(info, ByteText(1000), context, None).context_tokens

    assert limit(None, None, None) == 1000
    assert limit(500, 600, 700.0) == 500
    assert limit(None, 600, 700.0) == 600
    assert limit(None, None, 300.0) == 300


def test_rivals_are_refused_under_the_name_they_were_asked_by():
    has = msgspec.structs.replace(ALL, features=("logprobs",))
    with pytest.raises(BadRequest, match="`logprobs` above 0") as caught:
        generate([1], Sampling(logprobs=1, top_logprobs_param="logprobs"), has, (), "prompt")
    assert caught.value.param == "logprobs"
