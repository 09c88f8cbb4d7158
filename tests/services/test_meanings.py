from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from foreserve.foresight.length import Asked
from foreserve.foresight.length_features import MEANING, featurise
from foreserve.services.meanings import MOST_BATCH, MOST_WAITING, Given, Meanings
from foreserve.simulation import clock


class Scripted:
    """A text's meaning is its length. Notes its batches; `gate` holds it up."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def instructions(self, texts: Sequence[str]) -> NDArray[np.float16]:
        return np.stack([np.full(MEANING, -len(text), np.float16) for text in texts])

    def inputs(self, texts: Sequence[str]) -> NDArray[np.float16]:
        self.gate.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        self.batches.append(len(texts))
        self.threads.add(threading.current_thread().name)
        return np.stack([np.full(MEANING, len(text), np.float16) for text in texts])


def asked(text: str) -> Asked:
    return Asked(instruction="do", text=text, input_tokens=1, prompt_tokens=1, most=10)


async def test_each_gets_its_own_from_one_thread_and_what_waits_goes_together():
    encoder = Scripted()
    meanings = Meanings(encoder, limit_s=10.0)
    encoder.gate.clear()
    tasks = [asyncio.create_task(meanings.of([asked("x" * n)])) for n in range(1, 41)]
    await asyncio.sleep(0.01)
    encoder.gate.set()
    for n, task in enumerate(tasks, start=1):
        found = await task
        assert found is not None
        assert [(instruction[0], text[0]) for instruction, text in found] == [(-2, n)]
    assert len(encoder.threads) == 1
    assert max(encoder.batches) == MOST_BATCH
    assert len(encoder.batches) <= 4
    meanings.close()


async def test_who_would_wait_too_long_does_without_and_the_next_ones_are_served():
    encoder = Scripted()
    meanings = Meanings(encoder, limit_s=0.02)
    encoder.gate.clear()
    assert await meanings.of([asked("a"), asked("b")]) is None
    assert meanings.missed == 2
    encoder.gate.set()
    meanings = Meanings(encoder, limit_s=10.0)
    assert await meanings.of([asked("a")]) is not None
    meanings.close()


async def test_no_more_wait_than_may():
    encoder = Scripted()
    meanings = Meanings(encoder, limit_s=10.0)
    encoder.gate.clear()
    waiting = [asyncio.create_task(meanings.of([asked("x")])) for _ in range(MOST_WAITING + MOST_BATCH)]
    await asyncio.sleep(0.01)
    beyond = [asyncio.create_task(meanings.of([asked("y")])) for _ in range(MOST_WAITING + 1)]
    await asyncio.sleep(0.01)
    assert meanings.missed >= 1
    encoder.gate.set()
    await asyncio.gather(*waiting, *beyond)
    meanings.close()


async def test_a_failure_is_logged_and_costs_only_the_meaning(caplog: pytest.LogCaptureFixture):
    encoder = Scripted()
    encoder.broken = True
    meanings = Meanings(encoder)
    assert await meanings.of([asked("a")]) is None
    assert "could not be embedded" in caplog.text
    encoder.broken = False
    assert await meanings.of([asked("a")]) is not None
    meanings.close()


def test_on_a_virtual_clock_it_takes_its_time_and_no_thread():
    async def main() -> float:
        encoder = Scripted()
        meanings = Meanings(encoder)
        found = await meanings.of([asked("abc")])
        assert found is not None
        features = featurise([asked("abc")], Given(found))[0]
        assert features.meaning is not None
        assert (features.meaning[0], features.meaning[-1]) == (-2, 3)
        assert encoder.threads == {threading.current_thread().name}
        return asyncio.get_running_loop().time()

    assert clock.run(main()) > 0
