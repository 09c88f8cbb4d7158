from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.engines.events import EventSplitter, EventTooLong, told, told_by_json


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data: {}", "event: x\ndata: ü€🙂", ": ping"]), st.sampled_from(["\n\n", "\r\n\r\n"])
        )
    ),
    st.lists(st.integers(0, 200)),
    st.sampled_from(["", "data: cut off"]),
)
def test_any_cut_gives_the_same_whole_events(parts: list[tuple[str, str]], cuts: list[int], rest: str) -> None:
    events = [(text + end).encode() for text, end in parts]
    data = b"".join(events) + rest.encode()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    splitter = EventSplitter()
    out = [event for a, b in itertools.pairwise(places) for event in splitter.feed(data[a:b])]
    assert out == events
    assert splitter.rest() == rest.encode()


def test_lines_may_end_in_carriage_returns() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\r\rdata: 2\r") == [b"data: 1\r\r"]
    assert splitter.feed(b"\rdata") == [b"data: 2\r\r"]
    assert splitter.rest() == b"data"


def test_an_event_without_end_is_bounded() -> None:
    splitter = EventSplitter(bound=100)
    splitter.feed(b"x" * 100)
    with pytest.raises(EventTooLong, match="100 bytes"):
        splitter.feed(b"x")


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def test_usage_is_read_in_every_api() -> None:
    chat = {
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    }
    said = told(event(chat))
    assert said is not None
    assert said.apart
    assert said.usage == {"prompt_tokens": 5, "output_tokens": 2, "cached_tokens": 4}
    responses = told(
        event({"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 1}}})
    )
    assert responses is not None
    assert responses.usage == {"prompt_tokens": 3, "output_tokens": 1}
    assert not responses.apart
    messages = told(b'event: message_delta\ndata: {"type": "message_delta", "usage": {"output_tokens": 9}}\n\n')
    assert messages is not None
    assert messages.usage == {"output_tokens": 9}


def test_timings_of_llama_cpp_count_where_usage_does_not() -> None:
    said = told(event({"choices": [{"delta": {}}], "timings": {"cache_n": 30, "prompt_n": 1, "predicted_n": 4}}))
    assert said is not None
    assert said.usage == {"prompt_tokens": 31, "output_tokens": 4, "cached_tokens": 30}
    assert not said.apart


@pytest.mark.parametrize(
    "data",
    [
        event({"choices": [{"delta": {"content": 'the "usage" of words'}}]}),
        event({"choices": [], "usage": None}),
        b'data: {"usage": broken\n\n',
        b'data: "usage"\n\n',
        b': "usage"\n\n',
        b"data: [DONE]\n\n",
        event({"choices": [], "usage": {"prompt_tokens": True, "completion_tokens": "9"}}),
    ],
)
def test_what_tells_no_counts_is_passed_over(data: bytes) -> None:
    assert told(data) is None


def test_embeddings_tell_prompt_tokens_alone() -> None:
    said = told_by_json(b'{"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}')
    assert said is not None
    assert said.usage == {"prompt_tokens": 8}
    assert told_by_json(b"\xff") is None


@pytest.mark.parametrize(
    ("value", "cut"),
    [
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, True),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, True),
        ({"response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}}, True),
        ({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}, True),
        ({"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}, False),
        ({"choices": [{"delta": {"content": '"finish_reason": "length"'}}], "usage": {"prompt_tokens": 1}}, False),
        ({"choices": [], "finish_reason": "length", "usage": {"prompt_tokens": 1}}, False),
    ],
)
def test_an_answer_that_ended_at_its_limit_is_told(value: object, cut: bool) -> None:
    said = told(event(value))
    assert said is not None
    assert said.cut is cut
    found = told_by_json(json.dumps(value, indent=1).encode())
    assert found is not None
    assert found.cut is cut
