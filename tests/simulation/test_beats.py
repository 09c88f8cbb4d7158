"""Beats at whole multiples of odd intervals: each moment once, and none left out."""

import asyncio

import pytest

from foreserve.simulation import clock
from foreserve.simulation.beats import Beats


class Heart:
    busy = True

    def __init__(self):
        self.at = []

    def beat(self):
        self.at.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("liveness_s", [0.3, 0.7, 1.1, 2.8, 3.4, 4.9, 60.0, *(i * 0.13 for i in range(1, 40))])
def test_each_multiple_beats_once(monkeypatch, liveness_s):
    monkeypatch.setattr(clock, "MOST_TURNS", 10_000)
    every_s = liveness_s / 4

    async def main():
        beats, heart = Beats(every_s, liveness_s), Heart()
        beats.add(heart)
        await asyncio.sleep(1000.5 * every_s)
        beats.remove(heart)
        return heart.at

    at = clock.run(main())
    assert at == [beat * every_s for beat in range(1, 1001)]
