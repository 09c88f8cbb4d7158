from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from foreserve.engines.refusals import refusal, retry_after


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "rejected"), (404, "rejected"), (429, "rejected"), (503, "rejected"), (500, "error")]
)
async def test_whose_fault_it_is(status: int, reason: str) -> None:
    finish = refusal("http://h", status, {"Retry-After": "7", "Content-Type": "text/plain"}, b"no")
    assert finish.reason == reason
    assert f"answered {status}" in (finish.error or "")
    assert finish.detail["retry_after"] == (7.0 if status in (429, 503) else None)
    assert (finish.detail["content_type"], finish.detail["body"]) == ("text/plain", b"no")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "Loading model"}}', ', and says "Loading model"'),
        (b'{"error": "full"}', ', and says "full"'),
        (b'{"error": {"message": 3}}', ""),
        (b'{"error": [1]}', ""),
        (b"[]", ""),
        (b"\xff", ""),
    ],
)
def test_the_servers_words_are_quoted_as_its_own(body: bytes, words: str) -> None:
    assert refusal("http://h", 503, {}, body).error == f"the upstream server http://h answered 503{words}"


async def test_retry_after_in_seconds_as_a_date_and_as_nonsense() -> None:
    assert retry_after("1.5") == 1.5
    assert retry_after("-3") == 0.0
    assert retry_after("1e9") == 3600.0
    for odd in (None, "", "soon", "nan"):
        assert retry_after(odd) is None
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = retry_after(at)
    assert seconds is not None
    assert 55 < seconds <= 61
