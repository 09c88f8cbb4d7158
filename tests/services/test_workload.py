from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from foreserve.clock import now, wall
from foreserve.core import Forecast, Length, Outcome, OutcomeKind, Ramp, Work
from foreserve.errors import ConfigError
from foreserve.foresight.workload import Floats, Forecaster, Places, Series
from foreserve.foresight.workload_naive import LastValue, SeasonalNaive
from foreserve.loads import LoadStore
from foreserve.scaling import Window
from foreserve.services import workload
from foreserve.services.workload import ServiceLoad, foreseen_of, truth_of
from foreserve.settings import ScalingSettings
from foreserve.simulation import clock

EPOCH = 1_700_006_400.0
"""A midnight."""


def work(name: str, tokens: float | None = 100.0, prompt: int = 10) -> Work:
    forecast = None
    if tokens is not None:
        length = Length(mean=tokens, p50=tokens, p80=tokens, p95=tokens, source="fast")
        forecast = Forecast(input_tokens=prompt, output=length, most_tokens=1000, seconds=2.0)
    return Work(id=name, payload=None, cost={"slots": 1.0}, arrival=0.0, forecast=forecast)


def outcome(name: str, tokens: float = 0.0, kind: OutcomeKind = OutcomeKind.DONE, **words: Any) -> Outcome:
    usage = {"output_tokens": tokens, "prompt_tokens": 10.0} if tokens else {}
    found = {"arrival": 0.0, "started": 1.0, "ended": 4.0, "usage": usage, **words}
    return Outcome(id=name, service="chat", kind=kind, **found)


def load(**words: Any) -> ServiceLoad:
    return ServiceLoad("chat", ScalingSettings(**{"forecaster": "last_value", **words}))


def played(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return clock.run(main(), epoch=EPOCH)


async def come(one: ServiceLoad, count: int, tokens: float = 100.0, name: str = "r") -> None:
    for n in range(count):
        one.came(work(f"{name}{now()}-{n}", tokens), wall())


def test_what_is_foreseen_and_what_was_of_a_request() -> None:
    assert foreseen_of(work("a")) == {"input_tokens": 10.0, "output_tokens": 100.0, "seconds": 2.0}
    assert foreseen_of(work("a", None)) == {}
    ramp = Ramp(resource="kv_tokens", base=7, steps=10, most=20)
    assert foreseen_of(Work(id="a", payload=None, cost={}, arrival=0.0, ramp=ramp)) == {"input_tokens": 7.0}
    assert truth_of(outcome("a", 30.0)) == {"seconds": 3.0, "output_tokens": 30.0, "input_tokens": 10.0}
    assert truth_of(outcome("a")) == {"seconds": 3.0}, "a function has no tokens"
    assert truth_of(outcome("a", 3.0, OutcomeKind.CANCELLED, code="cancelled")) == {}
    assert truth_of(outcome("a", kind=OutcomeKind.SHED, code="overloaded", started=None)) == {}


def test_from_the_first_request_on_something_is_foreseen() -> None:
    async def main() -> None:
        one = load()
        assert one.forecast(10.0) is None, "not even started"
        await one.start()
        await asyncio.sleep(1.0)
        assert one.forecast(10.0) is None, "nothing has come"
        one.came(work("a"), wall())
        await asyncio.sleep(9.0)
        found = one.forecast(10.0)
        assert found is not None
        assert found.model == "recent"
        assert found.expected == pytest.approx({n: a * 6 for n, a in {
            "requests": 1.0, "input_tokens": 10.0, "output_tokens": 100.0, "seconds": 2.0}.items()})  # fmt: skip
        assert found.low["requests"] < found.expected["requests"] < found.high["requests"]
        await one.stop()

    played(main)


@pytest.mark.parametrize(("horizon_s", "ahead"), [(0.0, 1), (5.0, 1), (60.0, 1), (61.0, 2), (150.0, 3)])
def test_the_window_is_the_first_whole_one_that_begins_when_a_replica_would_be_ready(
    horizon_s: float, ahead: int
) -> None:
    async def main() -> None:
        one = load()
        await one.start()
        one.forecast(horizon_s)
        await come(one, 5)
        await asyncio.sleep(60.5)
        found = one.forecast(horizon_s)
        assert found is not None
        assert (found.at, found.window_s) == (EPOCH + 60.0 + 60.0 * ahead, 60.0)
        assert found.at >= EPOCH + 60.0 + horizon_s
        assert (found.expected["requests"], found.model) == (5.0, "last_value")
        await one.stop()

    played(main)


def test_another_horizon_is_answered_as_soon_as_that_can_be_told() -> None:
    async def main() -> None:
        one = load()
        await one.start()
        await come(one, 5)
        await asyncio.sleep(61.0)
        first = one.forecast(10.0)
        near = one.forecast(500.0)
        assert first is not None
        assert near is not None
        assert near.at == first.at, "what is nearest"
        await asyncio.sleep(1.0)
        found = one.forecast(500.0)
        assert found is not None
        assert found.at == EPOCH + 60.0 + 9 * 60.0
        for horizon in range(1000, 5000, 100):
            one.forecast(float(horizon))
            await asyncio.sleep(0.2)
        assert len(one._outlooks) <= workload.MOST_OUTLOOKS
        assert one._told.keys() <= one._outlooks.keys()
        await one.stop()

    played(main)


def test_refused_requests_count_and_the_truth_takes_the_place_of_what_was_foreseen() -> None:
    async def main() -> None:
        one = load()
        await one.start()
        one.came(work("a", 100.0), wall())
        one.came(work("shed", 60.0), wall())
        one.came(work("turned-away", None), wall())
        one.settled(outcome("shed", kind=OutcomeKind.SHED, code="overloaded", started=None))
        one.settled(outcome("a", 40.0))
        await asyncio.sleep(61.0)
        found = one.forecast(1.0)
        assert found is not None
        assert found.expected["requests"] == 3.0
        assert found.expected["output_tokens"] == pytest.approx(40.0 + 60.0), "of the third nothing was known then"
        await one.stop()

    played(main)


def test_an_answer_that_ends_in_a_later_window_corrects_its_own() -> None:
    async def main() -> None:
        one = load()
        await one.start()
        one.came(work("a", 100.0), wall())
        await asyncio.sleep(61.0)
        one.came(work("b", 30.0), wall())
        one.settled(outcome("a", 900.0))
        await asyncio.sleep(60.0)
        assert one._demand is not None
        assert one._demand.series()["output_tokens"].values.tolist() == [900.0, 30.0]
        await one.stop()

    played(main)


def test_history_survives_a_restart_and_the_time_between_is_unknown(tmp_path: Path) -> None:
    async def first() -> None:
        store = LoadStore.open(tmp_path, {"chat": 28.0})
        one = load(window_s=0.2)
        await one.start(store)
        for _ in range(3):
            await come(one, 4)
            await asyncio.sleep(0.2)
        await one.stop()
        await one.stop()
        store.close()

    async def second() -> None:
        store = LoadStore.open(tmp_path, {"chat": 28.0})
        one = load(window_s=0.2)
        await asyncio.sleep(0.5)
        await one.start(store)
        await asyncio.sleep(0.25)
        found = one.forecast(0.1)
        assert found is not None
        assert found.model == "last_value"
        assert one._demand is not None
        values = one._demand.series()["requests"].values
        assert np.isnan(values).any()
        assert np.nansum(values) >= 8
        await one.stop()
        store.close()

    asyncio.run(first())
    asyncio.run(second())


def test_a_history_that_cannot_be_read_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = LoadStore.open(tmp_path, {"chat": 28.0})
        store.path.write_bytes(b"broken" * 1000)
        one = load(window_s=600.0)
        await one.start(store)
        await come(one, 3)
        assert one.forecast(0.1) is not None
        await one.stop()
        store.close()

    asyncio.run(main())
    assert "cannot be read; it begins anew" in caplog.text


def history(days: float, window_s: float = 600.0) -> list[Window]:
    """A day's rise and fall, up to `EPOCH`."""
    count = round(days * 86_400.0 / window_s)
    at = EPOCH - window_s * np.arange(count, 0, -1)
    rng = np.random.default_rng(0)
    amounts = 1000.0 * (1.0 + 0.7 * np.sin(2 * np.pi * at / 86_400.0)) * np.exp(0.03 * rng.standard_normal(count))
    return [
        Window(at=float(t), window_s=window_s, amounts={"requests": float(a), "output_tokens": 100.0 * float(a)})
        for t, a in zip(at, amounts, strict=True)
    ]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "offered", lambda *_: {"last_value": LastValue(), "seasonal_naive": SeasonalNaive()})


def test_the_best_on_its_own_history_serves_and_says_why(two: None) -> None:
    async def main() -> None:
        one = load(forecaster="auto", window_s=600.0)
        await one.start()
        one.take_up(history(9))
        await asyncio.sleep(1.0)
        found = one.forecast(300.0)
        assert found is not None
        assert found.model == "seasonal_naive"
        assert found.why.startswith("seasonal naive: ")
        assert ", last value " in found.why
        assert found.at == EPOCH + 600.0
        assert found.level == 0.8
        assert found.expected["requests"] == pytest.approx(1000.0 * (1 + 0.7 * math.sin(2 * math.pi / 144)), rel=0.1)
        status = one.status()
        assert status.forecasters == {"requests": "seasonal_naive", "output_tokens": "seasonal_naive"}
        assert status.windows == 9 * 144
        assert status.why["requests"].startswith("seasonal naive")
        await one.stop()

    played(main)


def test_after_a_long_silence_old_forecasts_are_not_told_as_new(two: None) -> None:
    async def main() -> None:
        one = load(forecaster="auto")
        await one.start()
        await come(one, 5)
        await asyncio.sleep(61.0)
        assert one.forecast(1.0) is not None
        told = one._told[2]
        await asyncio.sleep(600.0)
        one._told[2] = told
        assert one.forecast(1.0) is None
        await one.stop()

    played(main)


class Slow:
    """Learns the mean; so slowly that windows pass meanwhile."""

    learns: ClassVar[bool] = True

    def __init__(self, mean: float | None = None) -> None:
        self.mean = mean

    def fit(self, series: Series, steps: int) -> Forecaster:
        return Slow(float(np.nanmean(series.values)))

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        return np.full(len(origins), np.nan if self.mean is None else self.mean)


def test_forecasts_do_not_wait_for_what_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "offered", lambda *_: {"last_value": LastValue(), "slow": Slow()})
    monkeypatch.setattr(workload, "LEARN_COST_S", 1500.0)

    async def main() -> list[str]:
        one = load(forecaster="auto", window_s=600.0)
        await one.start()
        one.take_up(history(2))
        models = []
        for n in range(24):
            await asyncio.sleep(300.0)
            await come(one, 300 if n % 4 < 2 else 900)
            found = one.forecast(300.0)
            assert found is not None
            assert found.at >= wall()
            models.append(found.model)
        assert "slow" in one.status().why["requests"]
        await one.stop()
        return models

    models = played(main)
    assert models[0] == "last_value"


def test_a_forecaster_that_fails_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(LastValue):
        def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
            raise ZeroDivisionError

    monkeypatch.setattr(workload, "offered", lambda *_: {"mine": Fails(), "last_value": LastValue()})

    async def main() -> None:
        one = load(forecaster="auto")
        await one.start()
        await come(one, 5)
        await asyncio.sleep(61.0)
        found = one.forecast(1.0)
        assert found is not None
        assert found.model == "last_value"
        await one.stop()

    played(main)


def test_two_simulations_foresee_the_same() -> None:
    async def main() -> list[Any]:
        one = load(forecaster="auto", window_s=600.0)
        await one.start()
        one.take_up(history(1.5))
        found = []
        for n in range(20):
            await asyncio.sleep(200.0)
            await come(one, 50 + 7 * n % 30)
            found.append(one.forecast(700.0))
        await one.stop()
        return found

    assert played(main) == played(main)


def test_in_a_simulation_nothing_dear_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dear(Slow):
        dear: ClassVar[bool] = True

    monkeypatch.setattr(workload, "offered", lambda *_: {"last_value": LastValue(), "dear": Dear()})

    async def main() -> set[str]:
        return set(load(forecaster="auto")._offered())

    assert played(main) == {"last_value"}
    assert asyncio.run(main()) == {"last_value", "dear"}


def test_a_forecaster_that_is_none_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"service 'chat': scaling\.forecaster: no forecaster is called 'magic'"):
        load(forecaster="magic")
