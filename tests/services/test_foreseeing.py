from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from foreserve.clock import wall
from foreserve.core import OutcomeKind
from foreserve.errors import ConfigError
from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import Features, featurise
from foreserve.foresight.length_training import train
from foreserve.foresight.length_verdict import Sample as Known
from foreserve.samples import Keep, MemorySamples, Sample, SampleStore, Trained, forget, samples_file
from foreserve.services import foreseeing, learning
from foreserve.services.foreseeing import Foreseer
from foreserve.services.foreseen import UNKNOWN_TOKENS
from foreserve.services.tiers import Choice
from foreserve.services.training import Job, Result, load, model_path, run
from foreserve.services.training_process import TrainingFailed, train_apart
from foreserve.settings import ForesightSettings
from foreserve.simulation import clock
from tests.services.foresight import asked, length, outcome, priced, served
from tests.services.test_meanings import Scripted

DAY = 86_400.0
KEEP = {"chat": Keep(rows=20_000, days=30.0)}


def settings(**words: Any) -> ForesightSettings:
    return ForesightSettings(**{"predictor": "fast", **words})


class Trainings:
    """Hears of trainings, and waits for them."""

    def __init__(self, foreseer: Foreseer) -> None:
        self.heard: list[str] = []
        self._more = asyncio.Event()
        foreseer.trained.append(self._hear)

    def _hear(self, outcome: str, seconds: float) -> None:
        self.heard.append(outcome)
        self._more.set()

    async def next(self) -> str:
        async with asyncio.timeout(90):
            await self._more.wait()
        self._more.clear()
        return self.heard[-1]


def test_nothing_is_known_at_first_and_no_more_room_is_kept_than_answers_usually_take():
    async def main() -> None:
        foreseer = Foreseer(settings())
        await foreseer.start("chat", None, None)
        about = (await foreseer.about([asked(1, most=5000)]))[0]
        price = foreseer.price("r1", about, {"slots": 1.0}, ramps=True)
        assert about.length.source == "limit"
        assert price.forecast is None
        assert price.cost == {"slots": 1.0, "kv_tokens": 30.0 + UNKNOWN_TOKENS}
        await foreseer.stop()

    clock.run(main())


def test_it_learns_lengths_and_times_and_trains_by_itself_on_a_virtual_clock():
    async def main() -> list[float]:
        foreseer = Foreseer(settings())
        await foreseer.start("chat", None, None)
        trainings = Trainings(foreseer)
        await served(foreseer, range(60))
        price = await priced(foreseer, 61)
        assert price.forecast is not None
        assert price.forecast.output.source == "histogram"
        await served(foreseer, range(62, 330))
        assert await trainings.next() == "taken"
        assert foreseer.status().models["fast"] >= 170
        found, off, hopeless = [], [], 0
        for number in range(1000, 1030):
            price = await priced(foreseer, number)
            forecast = price.forecast
            assert forecast is not None
            assert price.ramp is not None
            assert forecast.output.source == "fast"
            assert price.cost["kv_tokens"] == 30 + price.ramp.steps
            assert price.ramp.steps == int(np.ceil(forecast.output.p80))
            assert price.ramp.most == 30 + forecast.most_tokens
            truth = 0.1 + 0.02 * length(number)
            assert 0.0 < forecast.least_seconds < forecast.seconds
            off.append([forecast.output.p50 / length(number), forecast.seconds / truth])
            hopeless += forecast.least_seconds > truth
            found.append(forecast.output.p80)
        assert (np.median(np.abs(np.log(off)), axis=0) < [0.8, 1.2]).all()  # one constant for all: 0.9
        assert hopeless <= 3
        await foreseer.stop()
        return found

    assert clock.run(main()) == clock.run(main())


def test_the_worst_case_is_kept_room_for_where_the_settings_say_so():
    async def main() -> None:
        foreseer = Foreseer(settings(kv="worst_case"))
        await foreseer.start("chat", None, None)
        await served(foreseer, range(60))
        price = await priced(foreseer, 61)
        assert price.cost["kv_tokens"] == 30 + 2000
        assert price.ramp is None
        await foreseer.stop()

    clock.run(main())


def test_a_static_engine_gets_no_ramp_and_a_request_of_which_nothing_is_known_its_cost():
    async def main() -> None:
        foreseer = Foreseer(settings())
        await foreseer.start("chat", None, None)
        assert (await priced(foreseer, 1, ramps=False)).ramp is None
        price = foreseer.price("x", None, {"slots": 1.0}, ramps=True)
        assert (price.cost, price.forecast, price.ramp) == ({"slots": 1.0}, None, None)
        await foreseer.stop()

    clock.run(main())


def test_what_was_cut_counts_as_longer_and_what_never_began_as_nothing():
    async def main() -> None:
        foreseer = Foreseer(settings())
        await foreseer.start("chat", None, None)
        samples = foreseer._samples
        assert samples is not None
        for number, end in enumerate(
            (
                outcome(0, 50),
                msgspec.structs.replace(outcome(1, 50), finish="length"),
                outcome(2, 50, kind=OutcomeKind.CANCELLED),
                outcome(3, 50, kind=OutcomeKind.EXPIRED),
                outcome(4, 50, kind=OutcomeKind.FAILED),
                msgspec.structs.replace(outcome(5, 50, kind=OutcomeKind.SHED), first=None, started=None),
                outcome(6, 0, kind=OutcomeKind.CANCELLED),
                outcome(7, 2000),  # a server that does not tell why it stopped, at the limit
            )
        ):
            await priced(foreseer, number)
            foreseer.settled(end)
        assert [(row.tokens, row.censored) for row in samples.read("chat")] == [
            (50, False), (50, True), (50, True), (50, True), (50, True), (2000, True)
        ]  # fmt: skip
        assert foreseer.time.seen == 3
        assert foreseer.status().pending == 0
        foreseer.settled(outcome(0, 50))  # known no more
        assert len(samples.read("chat")) == 6
        await foreseer.stop()

    clock.run(main())


async def test_a_usage_beyond_all_measure_is_kept_within_the_limit(tmp_path: Path):
    store = SampleStore.open(tmp_path, KEEP)
    foreseer = Foreseer(settings(predictor="histogram"))
    await foreseer.start("chat", store, tmp_path)
    for number, told in enumerate((1e300, float("inf"), float("nan"), -1.0, 7.0)):
        await priced(foreseer, number)
        foreseer.settled(msgspec.structs.replace(outcome(number, 1), usage={"output_tokens": told}))
    await foreseer.stop()
    assert [(row.tokens, row.censored) for row in store.read("chat")] == [(2000, True), (2000, True), (7, False)]
    store.close()


def test_what_is_pending_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(foreseeing, "MOST_PENDING", 10)

    async def main() -> None:
        foreseer = Foreseer(settings())
        await foreseer.start("chat", None, None)
        for number in range(30):
            await priced(foreseer, number)
        assert foreseer.status().pending == 10
        await foreseer.stop()

    clock.run(main())


@pytest.mark.parametrize("predictor", ["off", "histogram"])
def test_less_can_be_wanted(predictor: str):
    async def main() -> None:
        foreseer = Foreseer(settings(predictor=predictor))
        await foreseer.start("chat", None, None)
        await served(foreseer, range(300))
        await asyncio.sleep(1000.0)
        price = await priced(foreseer, 301)
        found = None if price.forecast is None else price.forecast.output.source
        assert found == (None if predictor == "off" else "histogram")
        assert foreseer.status().models == {}
        assert foreseer.status().tier == predictor
        await foreseer.stop()

    clock.run(main())


def test_a_training_that_fails_is_tried_again_later_and_serving_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tried: list[float] = []

    def broken(job: Job) -> Result:
        tried.append(asyncio.get_running_loop().time())
        raise OSError("the disk is full")

    async def main() -> None:
        monkeypatch.setattr(learning, "run", broken)
        foreseer = Foreseer(settings(train_s=100.0))
        await foreseer.start("chat", None, None)
        trainings = Trainings(foreseer)
        await served(foreseer, range(250))
        assert await trainings.next() == "failed"
        await asyncio.sleep(2000.0)
        assert (await priced(foreseer, 251)).forecast is not None
        gaps = np.diff(tried)
        assert len(tried) >= 3
        assert gaps[0] >= 200.0
        assert (np.diff(gaps) > 0).all()
        await foreseer.stop()

    clock.run(main())
    assert "a training failed" in caplog.text
    assert "the disk is full" in caplog.text


class Failing(MemorySamples):
    """Fails as a store does whose disk is full or whose file is locked: each of `fail` so many times."""

    fail: ClassVar[dict[str, int]] = {}

    def _may(self, name: str) -> None:
        if self.fail.get(name, 0) > 0:
            self.fail[name] -= 1
            raise sqlite3.OperationalError("database is locked")

    def noted(self, service: str) -> bytes | None:
        self._may("noted")
        return super().noted(service)

    def read(self, service: str) -> list[Any]:
        self._may("read")
        return super().read(service)

    def trained(self, service: str) -> Any:
        self._may("trained")
        return super().trained(service)

    def expire(self, wall: float) -> None:
        self._may("expire")
        super().expire(wall)


@pytest.mark.parametrize("fail", [{"noted": 1}, {"read": 2}, {"trained": 3}, {"expire": 3}, {"trained": 2, "read": 2}])
def test_a_store_that_fails_for_a_while_stops_neither_start_nor_learning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fail: dict[str, int]
):
    monkeypatch.setattr(foreseeing, "MemorySamples", Failing)
    monkeypatch.setattr(Failing, "fail", dict(fail))

    async def main() -> None:
        foreseer = Foreseer(settings(train_s=10.0))
        await foreseer.start("chat", None, None)
        await asyncio.sleep(200.0)
        await served(foreseer, range(250))
        await asyncio.sleep(5000.0)
        assert foreseer.status().models["fast"] > 100
        await foreseer.stop()

    clock.run(main())
    assert "database is locked" in caplog.text
    assert not any(Failing.fail.values())


async def test_a_stop_while_it_starts_leaves_what_was_learned_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = SampleStore.open(tmp_path, KEEP)
    first = Foreseer(settings())
    await first.start("chat", store, tmp_path)
    await served(first, range(30))
    await first.stop()
    store.flush()
    before = store.noted("chat")
    begun, go_on = threading.Event(), threading.Event()
    noted = store.noted

    def slowly(service: str) -> bytes | None:
        begun.set()
        go_on.wait(10)
        return noted(service)

    monkeypatch.setattr(store, "noted", slowly)
    second = Foreseer(settings())
    starting = asyncio.create_task(second.start("chat", store, tmp_path))
    await asyncio.to_thread(begun.wait, 10)
    starting.cancel()
    await asyncio.wait([starting])
    go_on.set()
    await second.stop()
    store.flush()
    assert noted("chat") == before
    store.close()


async def test_a_running_server_takes_up_what_it_is_taught(tmp_path: Path):
    store = SampleStore.open(tmp_path, KEEP)
    foreseer = Foreseer(settings(train_s=0.2))
    await foreseer.start("chat", store, tmp_path)
    await served(foreseer, range(20))
    assert foreseer.status().models == {}
    other = SampleStore.open(tmp_path, KEEP)
    for number in range(100, 500):
        features = featurise([asked(number)])[0].to_bytes()
        other.record(Sample(service="chat", tenant="bob", at=wall(), features=features, tokens=length(number)))
    job = Job(service="chat", folder=str(tmp_path), features="all", tiers=("fast",), most_rows=1000,
              store=str(other.path))  # fmt: skip
    assert other.flush()
    result = run(job)
    assert result.judged[0].taken
    other.set_trained("chat", Trained(at=wall(), newest=result.newest))
    other.close()
    async with asyncio.timeout(30):
        while foreseer.status().models == {}:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
    predictor = foreseer._predictors["fast"]
    assert predictor.model is not None
    assert (await priced(foreseer, 900)).forecast.output.source == "fast"  # type: ignore[union-attr]
    coverage = predictor.coverage
    again = load(tmp_path, "chat", "fast")
    assert again is not None
    foreseer._install(learning.Learned({"fast": again}))  # the same one: nothing begins anew
    assert predictor.coverage is coverage
    await foreseer.stop()
    store.close()


def test_histograms_alone_start_no_training_but_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[Job] = []

    def noting(job: Job) -> Result:
        ran.append(job)
        return run(job)

    monkeypatch.setattr(learning, "run", noting)

    async def main() -> None:
        store = SampleStore.open(tmp_path, KEEP)
        foreseer = Foreseer(settings(predictor="histogram", train_s=10.0))
        await foreseer.start("chat", store, tmp_path)
        await served(foreseer, range(250))
        await asyncio.sleep(100.0)
        assert ran == []
        store.flush()
        left = model_path(tmp_path, "chat", "fast")
        left.parent.mkdir()
        left.write_bytes(b"of another time")
        forget(samples_file(tmp_path), "ann")
        await asyncio.sleep(100.0)
        assert len(ran) == 1
        assert not left.exists()
        assert (await priced(foreseer, 251)).forecast is None
        await foreseer.stop()
        store.close()

    clock.run(main())


def test_a_worse_model_is_refused(caplog: pytest.LogCaptureFixture):
    """Lengths that have nothing to do with what is asked, then with it the wrong way round."""

    async def main() -> None:
        foreseer = Foreseer(settings(train_s=50.0))
        await foreseer.start("chat", None, None)
        trainings = Trainings(foreseer)
        await served(foreseer, range(400))
        assert await trainings.next() == "taken"
        before = foreseer._predictors["fast"].model
        for number in range(400, 470):  # what is trained on turns, and the newest slice as it was
            await priced(foreseer, number)
            foreseer.settled(outcome(number, length(number + 1)))
        await served(foreseer, range(470, 560))
        verdict = await trainings.next()
        now = foreseer._predictors["fast"].model
        assert (verdict == "taken") == (now is not before)
        await foreseer.stop()

    with caplog.at_level(logging.INFO):
        clock.run(main())
    assert "tokens a quantile" in caplog.text


async def test_it_survives_a_restart_and_forgets_a_tenant(tmp_path: Path):
    """The real thing: on disk, and trained in a process of its own."""
    store = SampleStore.open(tmp_path, KEEP)
    foreseer = Foreseer(settings(train_s=0.2))
    await foreseer.start("chat", store, tmp_path)
    trainings = Trainings(foreseer)
    await served(foreseer, range(230))
    await served(foreseer, range(230, 330), tenant="bob")
    assert await trainings.next() == "taken"
    before = await priced(foreseer, 2000)
    await foreseer.stop()
    store.close()

    store = SampleStore.open(tmp_path, KEEP)
    again = Foreseer(settings(train_s=0.2))
    await again.start("chat", store, tmp_path)
    trainings = Trainings(again)
    after = await priced(again, 2000)
    assert before.forecast is not None
    assert after.forecast is not None
    assert after.forecast.output.source == "fast"
    assert after.forecast.output.p50 == pytest.approx(before.forecast.output.p50, rel=0.2)
    assert after.forecast.seconds == pytest.approx(before.forecast.seconds, rel=0.2)
    assert again.time.seen == 330

    assert forget(samples_file(tmp_path), "bob") == {"chat": 100}
    assert await trainings.next() == "taken"
    trained = store.trained("chat")
    assert trained is not None
    assert not trained.stale
    assert again.status().models["fast"] < 230
    await again.stop()
    store.close()


async def test_a_service_that_does_not_remember_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreseer = Foreseer(settings(remember=False))
    await foreseer.start("chat", None, None)
    trainings = Trainings(foreseer)
    await served(foreseer, range(250))
    assert await trainings.next() == "taken"
    assert (await priced(foreseer, 300)).forecast.output.source == "fast"  # type: ignore[union-attr]
    await foreseer.stop()
    assert os.listdir(tmp_path) == []


async def test_a_training_process_ends_with_its_server(monkeypatch: pytest.MonkeyPatch):
    started: list[asyncio.subprocess.Process] = []
    spawn = asyncio.create_subprocess_exec

    async def noted(*args: Any, **words: Any) -> asyncio.subprocess.Process:
        started.append(await spawn(*args, **words))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    job = Job(service="chat", folder="/nowhere", features="all", tiers=("fast",), most_rows=10)
    task = asyncio.create_task(train_apart(job))
    while not started:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert started[0].returncode is not None
    with pytest.raises(TrainingFailed, match="longer than 0 s"):
        await train_apart(job, limit_s=0.0)
    assert started[1].returncode is not None


async def test_a_training_process_that_fails_says_why(tmp_path: Path):
    job = Job(service="chat", folder=str(tmp_path), features="all", tiers=("fast",), most_rows=10, store=str(tmp_path))
    with pytest.raises(TrainingFailed, match="unable to open database"):
        await train_apart(job)


def test_an_encoder_that_is_wanted_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: Any) -> Sequence[Any]:
        raise ConfigError("the full tier needs the package x")

    monkeypatch.setattr("foreserve.services.tiers._load", missing)

    async def main() -> None:
        with pytest.raises(ConfigError, match="needs the package x"):
            await Foreseer(settings(predictor="full")).start("chat", None, None)

    clock.run(main())


def test_until_a_full_model_is_in_place_nobody_waits_for_meanings_and_status_says_who_serves(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(foreseeing, "choose", lambda wanted: (Choice(tier="full", why="a test"), Scripted()))
    taught = [Known(featurise([asked(n)], Scripted())[0], Ended(tokens=length(n))) for n in range(300)]
    bare = [Known(featurise([asked(n)])[0], Ended(tokens=length(n))) for n in range(300)]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        foreseer = Foreseer(settings(predictor="full"))
        await foreseer.start("chat", None, None)
        assert foreseer._samples is not None
        status = foreseer.status()
        assert (status.tier, status.chosen, status.why) == ("histogram", "full", "a test")

        began = loop.time()
        await priced(foreseer, 1)
        assert loop.time() == began
        await asyncio.sleep(1.0)
        foreseer.settled(outcome(1, 50))
        features = Features.from_bytes(foreseer._samples.read("chat")[0].features)
        assert features.meaning is not None
        assert (features.meaning == featurise([asked(1)], Scripted())[0].meaning).all()  # type: ignore[union-attr]

        foreseer._install(learning.Learned({"fast": train(bare)}))
        assert foreseer.status().tier == "fast"
        began = loop.time()
        await priced(foreseer, 2)
        assert loop.time() == began
        await asyncio.sleep(1.0)

        foreseer._install(learning.Learned({"fast": train(bare), "full": train(taught)}))
        assert foreseer.status().tier == "full"
        began = loop.time()
        price = await priced(foreseer, 3)
        assert loop.time() > began
        assert price.forecast is not None
        assert price.forecast.output.source == "full"
        await foreseer.stop()

    clock.run(main())


@pytest.mark.model
async def test_the_full_tier_learns_with_meanings_and_does_without_where_they_come_late(tmp_path: Path):
    store = SampleStore.open(tmp_path, KEEP)
    foreseer = Foreseer(settings(predictor="full"))
    await foreseer.start("chat", store, tmp_path)
    assert foreseer.choice.tier == "full"
    assert "ms (p50)" in foreseer.choice.why
    trainings = Trainings(foreseer)
    for number in range(400):
        await priced(foreseer, number)
        await asyncio.sleep(0.01)  # no answer is there before its meaning
        foreseer.settled(outcome(number, length(number)))
    assert await trainings.next() == "taken"
    models = foreseer.status().models
    price = await priced(foreseer, 1000)
    assert price.forecast is not None
    assert price.forecast.output.source == ("full" if "full" in models else "fast")
    meanings = foreseer._meanings
    assert meanings is not None
    meanings._limit_s = 0.0
    price = await priced(foreseer, 1001)
    assert price.forecast is not None
    assert price.forecast.output.source == ("fast" if "fast" in models else "histogram")
    assert foreseer.status().without_meaning == ("full" in models)  # else nobody waits for it
    await foreseer.stop()
    store.close()
