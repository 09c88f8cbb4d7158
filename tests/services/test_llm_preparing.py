from __future__ import annotations

import asyncio
import threading

import pytest

from foreserve.errors import Shed
from foreserve.services.llm import LLM
from foreserve.services.llm_preparing import WAITING_PER_PLACE, Preparing
from foreserve.services.llm_prompt import OFFLOAD_CHARS, Sampling
from tests.services.test_llm import ready


async def test_few_run_few_wait_and_the_rest_are_refused():
    preparing = Preparing(at_once=2)
    go = threading.Event()
    running, most = 0, 0
    lock = threading.Lock()

    def prepare() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(10)
        with lock:
            running -= 1
        return 1

    taken = [asyncio.create_task(preparing.run(prepare)) for _ in range(2 * (1 + WAITING_PER_PLACE))]
    await asyncio.sleep(0.05)
    with pytest.raises(Shed) as refused:
        await preparing.run(prepare)
    assert refused.value.retry_after == 1.0
    taken.pop().cancel()
    await asyncio.sleep(0)
    taken.append(asyncio.create_task(preparing.run(prepare)))
    go.set()
    assert await asyncio.gather(*taken) == [1] * len(taken)
    assert most == 2


async def test_a_failure_gives_its_place_back():
    preparing = Preparing(at_once=1)
    for _ in range(2 * (1 + WAITING_PER_PLACE)):
        with pytest.raises(ZeroDivisionError):
            await preparing.run(lambda: 1 // 0)


async def test_a_flood_of_long_prompts_is_refused(monkeypatch: pytest.MonkeyPatch):
    llm: LLM = ready()
    monkeypatch.setattr(llm, "_preparing", Preparing(at_once=1))
    go = threading.Event()
    plain, plain_chat = llm.text.encode, llm.text.conversation
    monkeypatch.setattr(llm.text, "encode", lambda text: go.wait(10) and plain(text))
    monkeypatch.setattr(llm.text, "conversation", lambda messages, at: go.wait(10) and plain_chat(messages, at))
    long = "a" * (OFFLOAD_CHARS + 1)
    messages = [{"role": "user", "content": long}]
    asked = [
        asyncio.create_task(llm.complete([long], Sampling()) if i % 2 else llm.chat(messages, Sampling()))  # type: ignore[arg-type]
        for i in range(100)
    ]
    await asyncio.sleep(0.05)
    go.set()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(end, Shed) for end in ends) == 100 - (1 + WAITING_PER_PLACE)
