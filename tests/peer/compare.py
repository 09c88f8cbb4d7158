"""Asks a server directly and through Foreserve, and takes away what differs from one request to the next."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx

from tests.peer.conftest import Pair

CHAT = "/v1/chat/completions"
_ONE_TIME = {"id", "created", "timings", "created_at", "completed_at"}
CALL = "Repeat: <tool_call>\n"
"""What makes so small a model call a tool: llama.cpp's grammar lets it talk as long as it likes before it calls."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "Tokyo"]}},
                "required": ["city"],
            },
        },
    }
]


def ask(words: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": words}]
    return {"messages": messages, "temperature": 0, "max_tokens": 24, "seed": 1} | more


def both(pair: Pair, body: dict[str, Any], path: str = CHAT) -> tuple[httpx.Response, httpx.Response]:
    """The replies to one request, direct and through; what is of one time only is in both, and left to `lasting`."""
    body = {"model": pair.model} | body
    direct, through = (httpx.post(url + path, json=body, timeout=120) for url in (pair.direct, pair.through))
    return direct, through


def lasting(value: Any) -> Any:
    """Without ids and times, at any depth."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in _ONE_TIME}
    if isinstance(value, list):
        return [lasting(item) for item in value]
    return value


def equal(pair: Pair, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    """Both replies, whole, must be equal field by field. Returns the one through us."""
    direct, through = both(pair, body, path)
    assert through.status_code == direct.status_code == 200, (direct.text, through.text)
    assert through.headers["content-type"] == direct.headers["content-type"]
    # Not only the values: the fields come in the same order, ids and times among them.
    assert _shape(through.content) == _shape(direct.content)
    assert lasting(through.json()) == lasting(direct.json())
    found: dict[str, Any] = through.json()
    return found


def equal_stream(pair: Pair, body: dict[str, Any], path: str = CHAT) -> list[Any]:
    """Both replies, streamed, must be equal event by event. Returns the events through us."""
    direct, through = both(pair, body | {"stream": True}, path)
    assert through.status_code == direct.status_code == 200, (direct.text, through.text)
    assert through.headers["content-type"] == direct.headers["content-type"]
    ours, theirs = events(through.content), events(direct.content)
    assert lasting(ours) == lasting(theirs)
    return ours


def events(stream: bytes) -> list[Any]:
    """The data of each event, `[DONE]` as it is."""
    found = []
    for event in stream.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data:
            found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


def _shape(body: bytes) -> list[str]:
    return re.findall(r'"([a-z_]+)":', body.decode())


def gauge(url: str, name: str) -> float:
    """One metric of a server."""
    page = httpx.get(url + "/metrics").text
    found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+-]+)$", page, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def stops(pair: Pair, running: str, generated: str, body: dict[str, Any]) -> None:
    """A client that leaves a long stream stops the server long before the end of the answer."""
    before = gauge(pair.direct, generated)
    with httpx.stream("POST", pair.through + CHAT, json={"model": pair.model, "stream": True} | body) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        assert gauge(pair.direct, running) == 1
    until = time.monotonic() + 30
    while gauge(pair.direct, running) > 0:
        assert time.monotonic() < until, "it still runs"
        time.sleep(0.1)
    assert gauge(pair.direct, generated) - before < body["max_tokens"] / 2
