from __future__ import annotations

from foreserve.engines.counting import Counting
from tests.engines.scripted_server import USAGE, delta, event

FIRST = event(delta(content="a"))
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
STAMPED = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"system_fingerprint":"v \\u00fc"}\n\n'
TOLD = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3},"system_fingerprint":"v \\u00fc"}\n\n'
DONE = event(b"[DONE]")


def test_what_the_client_asked_for_stays() -> None:
    counts = Counting(ours=False)
    assert counts.feed([FIRST, LAST, TOLD, DONE]) == FIRST + LAST + TOLD + DONE
    assert counts.usage == {"prompt_tokens": 7, "output_tokens": 3}
    assert counts.rest() == b""


def test_what_only_we_asked_for_is_taken_out_and_the_fingerprint_put_back() -> None:
    counts = Counting(ours=True)
    out = [counts.feed([event]) for event in (FIRST, LAST, TOLD, DONE)]
    assert out == [FIRST, b"", b"", STAMPED + DONE]
    assert counts.usage == {"prompt_tokens": 7, "output_tokens": 3}


def test_a_fingerprint_that_is_there_is_not_doubled() -> None:
    counts = Counting(ours=True)
    assert counts.feed([STAMPED, TOLD, DONE]) == STAMPED + DONE
    assert counts.feed([LAST, event({"choices": [], "usage": USAGE}), DONE]) == LAST + DONE


def test_a_finishing_event_is_not_lost_when_nothing_follows() -> None:
    counts = Counting(ours=True)
    assert counts.feed([FIRST, LAST]) == FIRST
    assert counts.rest() == LAST
    assert counts.feed([TOLD]) == b""
    assert counts.rest() == b""
