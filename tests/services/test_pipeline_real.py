"""The fact checker on the real engine: streaming changes when things come, and nothing of what comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from benchmarks.pipeline_app import fact_checker, question
from benchmarks.pipeline_served import MODELS, Meaning

import foreserve as fs
from foreserve.clock import now
from foreserve.core import Request

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1200)]

REQUESTS = 20


async def test_streaming_and_not_give_the_same_on_an_exact_engine():
    chat = fs.LLM("smollm2", exact=True, max_running=16, queue={"max_waiting": 1000, "max_wait_s": 1200})
    models: dict[str, Any] = dict.fromkeys(MODELS, chat)
    forms = {"on": fact_checker(models, Meaning), "off": fact_checker(models, Meaning, streaming=False)}
    app: Any = {"chat": chat, "meaning": Meaning, "state": {"history": False}, **forms}
    running = fs.App(**app).run()
    await running.start()
    found: dict[str, list[Any]] = {}
    for form in forms:
        served = running.pipelines[form]

        async def ask(number: int, form: str = form, served: Any = served) -> Any:
            request = Request(id=f"{form}{number}", service=form, payload=None, arrival=now())
            return await served.submit(request, {"question": question(number)}, listens=False).result()

        found[form] = list(await asyncio.gather(*(ask(number) for number in range(REQUESTS))))
    await running.stop(5.0)
    running.ledger.check(idle=True)
    assert found["on"] == found["off"]
    assert sum(len(result["verdicts"]) for result in found["on"]) > REQUESTS
