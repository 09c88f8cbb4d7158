"""Servers that cannot be measured say so instead of being waited for."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from foreserve.core import Finish
from foreserve.errors import ConfigError
from foreserve.simulation.calibrate_plan import Effort
from foreserve.simulation.calibrate_remote import Told, calibrate_remote
from foreserve.simulation.probe import Asked, EngineLost, Probe
from tests.engines.scripted_server import Script, event, scripted


def answering(most: int, *, refuses: bool = False, step_s: float = 0.0005) -> Script:
    """Answers end after so many tokens, whatever is asked for. `refuses`: `ignore_eos` is an error."""

    async def script(request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if refuses and "ignore_eos" in asked:
            return web.json_response({"error": {"message": "unknown field ignore_eos"}}, status=400)
        tokens = min(asked["max_tokens"], most)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(tokens):
            await asyncio.sleep(step_s)
            await response.write(event({"choices": [{"index": 0, "text": "a"}]}))
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": tokens}
        await response.write(event({"choices": [], "usage": usage}) + event(b"[DONE]"))
        return response

    return script


@pytest.mark.parametrize(("refuses", "words"), [(True, "does not take"), (False, "does not heed")])
@pytest.mark.parametrize("told", [Told(), Told(slots=2)])
async def test_a_server_whose_answers_stay_short_is_told_to_ignore_their_ends(refuses: bool, words: str, told: Told):
    async with scripted() as server, asyncio.timeout(30):
        server.script = answering(6, refuses=refuses)
        with pytest.raises(ConfigError, match=rf"shorter than asked for.*{words} `ignore_eos`.*--ignore-eos"):
            await calibrate_remote(server.url, "m", {}, told, Effort(seconds=5.0, fine=False))


class Scripted(Probe):
    """Answers are what a test says."""

    def __init__(self) -> None:
        super().__init__(None, 1)  # type: ignore[arg-type]

    def tell(self) -> None:
        self._news.set()


def one(probe: Probe) -> Asked:
    return Asked("a", 1, 10, 0.0)


async def test_who_waits_for_tokens_hears_of_the_end():
    probe = Scripted()
    asked = one(probe)
    waiting = asyncio.ensure_future(probe.more(asked, 2))
    await asyncio.sleep(0)
    asked.came(1, 1.0)
    probe.tell()
    await asyncio.sleep(0)
    assert not waiting.done()
    asked.over(2.0, Finish(reason="stop"))
    probe.tell()
    async with asyncio.timeout(5):
        assert not await waiting
        assert not await probe.more(asked, 1)


async def test_a_begin_that_failed_raises():
    probe = Scripted()
    asked = one(probe)
    asked.over(1.0, Finish(reason="rejected", error="too long"))
    async with asyncio.timeout(5):
        with pytest.raises(EngineLost, match="too long"):
            await probe.begin([asked])
        with pytest.raises(EngineLost, match="too long"):
            await probe.more(asked, 1)
