"""The engine `vllm` behind `foreserve serve`, in an interpreter that has vLLM and nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.servers import descendants, free_port

from tests.peer.compare import ask
from tests.peer.conftest import interpreter, process

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]

APP = """
services:
  chat:
    kind: llm
    model: smollm2
    engine: vllm
    python: {python}
    max_running: 4
    kv_cache_gb: 0.5
    engine_options: {{enforce_eager: true, block_size: 32}}
server: {{host: 127.0.0.1, port: {port}}}
"""


class Served:
    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def core(self) -> int:
        """vLLM's engine process."""
        return next(pid for pid in descendants(self.pid) if _command(pid).startswith("VLLM::EngineCore"))

    def ended(self, outcome: str) -> float:
        """How many requests have ended so."""
        page = httpx.get(self.url + "/metrics").text
        lines = [line for line in page.splitlines() if line.startswith("foreserve_requests_total{")]
        return sum(float(line.split()[-1]) for line in lines if f'outcome="{outcome}"' in line)

    def answer(self, **words: Any) -> httpx.Response:
        return httpx.post(self.url + "/v1/chat/completions", json={"model": "chat", **words}, timeout=120)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def served(logs: Path) -> Iterator[Served]:
    port = free_port()
    app = logs / "vllm-engine.yaml"
    app.write_text(APP.format(python=interpreter("FORESERVE_PEER_VLLM"), port=port))
    program = shutil.which("foreserve", path=str(Path(sys.executable).parent)) or "foreserve"
    log, url = logs / "vllm-engine.log", f"http://127.0.0.1:{port}"
    with process([program, "serve", str(app)], url, "/health/ready", 200, log):
        (pid,) = (each for each in descendants(os.getpid()) if str(app) in _command(each))
        yield Served(url, pid)


def events(served: Served, began: threading.Event | None = None, **words: Any) -> list[dict[str, Any]]:
    """What a streamed answer says, event by event."""
    said = []
    body = {"model": "chat", "stream": True, "stream_options": {"include_usage": True}, **ask("", **words)}
    body["messages"] = [{"role": "user", "content": words.pop("content", "Tell a long story.")}]
    with httpx.stream("POST", served.url + "/v1/chat/completions", json=body, timeout=200) as reply:
        assert reply.status_code == 200, reply.read()
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                said.append(json.loads(line[6:]))
                if began is not None and len(said) > 3:
                    began.set()
    return said


def test_a_chat_is_streamed(served: Served) -> None:
    said = events(served, max_tokens=24, ignore_eos=True)
    texts = [event["choices"][0]["delta"].get("content") for event in said if event["choices"]]
    assert len([text for text in texts if text]) > 10
    assert said[-1]["usage"]["completion_tokens"] == 24


def test_log_probabilities_a_schema_and_what_is_too_long(served: Served) -> None:
    messages = [{"role": "user", "content": "Give a number."}]
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    terms = {"messages": messages, "max_tokens": 40, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    reply = served.answer(**terms, response_format=form).json()
    assert set(json.loads(reply["choices"][0]["message"]["content"])) == {"n"}
    assert len(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert served.answer(messages=messages, max_tokens=9000).status_code == 400


def test_a_killed_engine_process_fails_each_request_once_and_is_started_anew(served: Served) -> None:
    failed = served.ended("failed")
    began = [threading.Event(), threading.Event()]
    said: list[list[dict[str, Any]]] = [[], []]

    def stream(i: int) -> None:
        said[i] = events(served, began[i], max_tokens=1500, ignore_eos=True)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    assert all(each.wait(60) for each in began)
    core = served.core()
    os.kill(core, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    for each in said:
        assert "vLLM's engine process has ended" in json.dumps(each[-1]), each[-1]
        assert sum("error" in event for event in each) == 1
    assert served.ended("failed") - failed == 2
    again = served.answer(messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    assert again.status_code in (200, 503), again.text
    until = time.monotonic() + 120
    while again.status_code != 200 and time.monotonic() < until:
        time.sleep(1)
        again = served.answer(messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    assert again.status_code == 200, again.text
    assert served.core() != core


def test_nothing_is_left_of_a_gateway_that_is_killed(served: Served) -> None:
    """Last: the server is of no use after it."""
    all_of_it = descendants(served.pid)
    assert served.core() in all_of_it
    os.kill(served.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while left := [pid for pid in all_of_it if _command(pid)]:
        assert time.monotonic() < until, [(pid, _command(pid)) for pid in left]
        time.sleep(0.2)
