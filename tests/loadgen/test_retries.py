import email.utils

import pytest

from foreserve.loadgen import retries

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": email.utils.formatdate(NOW + 20, usegmt=True)}, 20.0),
        ({"retry-after": "tomorrow"}, None),
    ],
)
def test_what_the_server_asks(headers, seconds):
    assert retries.retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "headers", "again"),
    [
        (None, {}, True),
        (400, {}, False),
        (401, {}, False),
        (404, {}, False),
        (408, {}, True),
        (409, {}, True),
        (429, {}, True),
        (500, {}, True),
        (503, {}, True),
        (504, {"x-should-retry": "false"}, False),
        (400, {"x-should-retry": "true"}, True),
        (429, {"retry-after": "121"}, False),
        (429, {"retry-after": "121", "x-should-retry": "true"}, False),
        (429, {"retry-after": "inf"}, True),
    ],
)
def test_when_it_is_worth_it(status, headers, again):
    assert retries.worth_it(status, headers, NOW) is again


def test_waits_double_up_to_eight_seconds_less_up_to_a_quarter():
    assert [retries.wait(n, {}, NOW, 0.0) for n in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert retries.wait(1, {}, NOW, 0.999) == pytest.approx(0.75, rel=0.01)
    assert retries.wait(10_000, {}, NOW, 0.0) == 8.0


@pytest.mark.parametrize(("asked", "seconds"), [("2", 2.0), ("120", 120.0), ("0", 0.5), ("-3", 0.5), ("inf", 0.5)])
def test_the_servers_wait_is_kept_where_it_makes_sense(asked, seconds):
    assert retries.wait(0, {"retry-after": asked}, NOW, 0.0) == seconds


def test_the_official_client_agrees():
    client = pytest.importorskip("openai").OpenAI(api_key="x")
    httpx = pytest.importorskip("httpx2")
    for headers in (
        {},
        {"retry-after": "7"},
        {"retry-after-ms": "70"},
        {"retry-after": "500"},
        {"x-should-retry": "false"},
    ):
        for status in (400, 404, 408, 409, 422, 429, 500, 503, 504):
            response = httpx.Response(status, headers=headers)
            assert client._should_retry(response) is retries.worth_it(status, headers, NOW), (status, headers)
            assert client._parse_retry_after_header(response.headers) == retries.retry_after(headers, NOW)
