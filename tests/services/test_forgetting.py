from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foreserve.app import App
from foreserve.clock import wall
from foreserve.errors import ConfigError
from foreserve.samples import Keep, Sample, SampleStore, Trained, forget, samples_file
from foreserve.services.forgetting import LEFT_DAYS, expire_left, forget_service
from foreserve.services.llm import LLM
from foreserve.services.training import Tier, model_path

WALL = 1_700_000_000.0
DAY = 86_400.0
TIERS: tuple[Tier, ...] = ("fast", "full")


def filled(folder: Path, *services: str, at: float = WALL) -> SampleStore:
    """Services with an answer, a model in both tiers and what was learned of times."""
    store = SampleStore.open(folder, {name: Keep(rows=100, days=1e6) for name in services})
    for name in services:
        store.record(Sample(service=name, tenant="ann", at=at, features=b"a telling feature", tokens=3))
        store.note(name, b"of times")
        for tier in TIERS:
            path = model_path(folder, name, tier)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"a model")
    store.flush()
    for name in services:
        store.set_trained(name, Trained(at=at, newest=1))
    return store


def models(folder: Path, service: str) -> int:
    return sum(model_path(folder, service, tier).exists() for tier in TIERS)


def test_all_of_a_service_is_deleted_and_who_serves_it_is_told(tmp_path: Path):
    store = filled(tmp_path, "chat", "chat.more")
    assert forget_service(tmp_path, "chat") == 1
    assert (store.read("chat"), store.noted("chat"), models(tmp_path, "chat")) == ([], None, 0)
    trained = store.trained("chat")
    assert trained is not None
    assert trained.stale
    assert (len(store.read("chat.more")), store.noted("chat.more"), models(tmp_path, "chat.more")) == (
        1,
        b"of times",
        2,
    )
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        forget_service(tmp_path, "chart")
    forget_service(tmp_path, "chat.more")
    store.close()
    assert b"telling" not in samples_file(tmp_path).read_bytes()


def test_what_nobody_serves_goes_some_time_after_its_last_answer(tmp_path: Path):
    assert expire_left(tmp_path, (), WALL) == []
    store = filled(tmp_path, "old", "chat")
    other = filled(tmp_path, "others", at=WALL + LEFT_DAYS * DAY)
    forget(samples_file(tmp_path), "ann", "never")  # marks one of which nothing else is known
    assert expire_left(tmp_path, {"chat"}, WALL + LEFT_DAYS * DAY - 1) == ["never"]
    assert expire_left(tmp_path, {"chat"}, WALL + LEFT_DAYS * DAY + 1) == ["old"]
    assert (store.read("old"), store.trained("old"), store.noted("old"), models(tmp_path, "old")) == ([], None, None, 0)
    assert (len(store.read("chat")), models(tmp_path, "chat"), models(tmp_path, "others")) == (1, 2, 2)
    store.close()
    other.close()


async def test_a_server_sees_to_it_whether_it_remembers_or_not(tmp_path: Path):
    filled(tmp_path, "chat", at=wall() - 2 * LEFT_DAYS * DAY).close()
    kind = LLM("simulated", launcher="inline", foresight={"remember": False})
    running = App(chat=kind, state={"folder": str(tmp_path)}).run()
    tasks = asyncio.all_tasks()
    await running.start()
    async with asyncio.timeout(20):
        while models(tmp_path, "chat"):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
    await running.stop(1.0)
    assert asyncio.all_tasks() == tasks
