from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from foreserve.app import App
from foreserve.core import Request
from foreserve.dispatch.batching import FixedBatches
from foreserve.errors import ConfigError, EngineStartError
from foreserve.running import Running
from foreserve.runtime.forking import unsupported
from foreserve.samples import SampleStore, samples_file
from foreserve.services.function import Function
from foreserve.services.llm import LLM, STATIC_POLICY
from foreserve.services.llm_prompt import Sampling
from foreserve.simulation import clock


def app(folder: Path | None, **words: Any) -> App:
    engine = {"output_tokens": [5, 15], "decode_s": 0.001}
    words = {"launcher": "inline", "engine_options": engine} | words
    state = {"history": False} if folder is None else {"folder": str(folder)}
    return App(chat=LLM("simulated", **words), state=state)


async def asks(running: Running, count: int) -> None:
    kind = running.services["chat"].kind
    assert isinstance(kind, LLM)
    for number in range(count):
        said = [{"role": "user", "content": f"tell me of {number}"}]
        payload = await kind.chat(said, Sampling(max_tokens=100))
        about = await kind.about_chat(said, payload, "ann")
        request = Request(
            id=f"r{number}", service="chat", payload=payload, about=about, tenant="ann",
            arrival=asyncio.get_running_loop().time(),
        )  # fmt: skip
        stream = running.services["chat"].submit(request)
        async for _ in stream:
            pass


async def test_what_was_learned_is_there_when_the_app_starts_again(tmp_path: Path):
    for start in range(2):
        running = app(tmp_path).run()
        await running.start()
        status = running.services["chat"].status().foresight
        assert status is not None
        assert (status.chosen, status.tier) == ("fast", "histogram")  # no model has been trained yet
        about = await running.kinds["chat"].about_chat(  # type: ignore[attr-defined]
            [{"role": "user", "content": "hi"}],
            await running.kinds["chat"].chat([{"role": "user", "content": "hi"}], Sampling(max_tokens=100)),  # type: ignore[attr-defined]
            "ann",
        )
        assert about.length.source == ("histogram" if start else "limit")
        await asks(running, 30)
        await running.stop(1.0)
        running.ledger.check(idle=True)
    assert samples_file(tmp_path).is_file()


@pytest.mark.parametrize("words", [{"foresight": {"remember": False}}, {"foresight": {"predictor": "off"}}])
async def test_a_service_that_remembers_nothing_has_no_store(tmp_path: Path, words: dict[str, Any]):
    running = app(tmp_path, **words).run()
    await running.start()
    await asks(running, 3)
    await running.stop(1.0)
    assert not samples_file(tmp_path).exists()


def test_a_whole_app_foresees_on_a_virtual_clock():
    async def main() -> list[float | None]:
        running = app(None).run()
        await running.start()
        found: list[float | None] = []
        running.observers.append(lambda outcome: found.append(outcome.forecast and outcome.forecast.seconds))
        await asks(running, 60)
        await running.stop(1.0)
        return found

    first = clock.run(main())
    assert first == clock.run(main())
    assert None not in first[5:], "a few answers have to end before anything is foreseen"


def test_auto_follows_what_the_engine_says_of_itself(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        kind = LLM("simulated", launcher="inline", engine_options={"batching": "static"})
        kind._static = False  # as of an engine whose name does not tell
        running = App(chat=kind, state={"history": False}).run()
        before = running.services["chat"].dispatcher._policy
        await running.start()
        assert kind.policy == STATIC_POLICY
        after = running.services["chat"].dispatcher._policy
        assert type(after) is not type(before)
        assert isinstance(after, FixedBatches) == (STATIC_POLICY == "fixed")
        await asks(running, 3)
        await running.stop(1.0)
        running.ledger.check(idle=True)

    clock.run(main())


def test_policy_options_that_do_not_fit_are_told():
    async def main() -> None:
        with pytest.raises(ConfigError, match=r"policy_options\.nonsense: unknown option for policy 'fcfs'"):
            app(None, policy="fcfs", policy_options={"nonsense": 1}).run()

    clock.run(main())


@pytest.mark.parametrize("guessed_static", [False, True])
def test_options_of_the_policy_that_was_guessed_leave_no_replica_that_serves_nothing(
    caplog: pytest.LogCaptureFixture, guessed_static: bool
):
    async def main() -> None:
        options: dict[str, Any] = {"phi": 1e5} if guessed_static else {"aging": 2.0}
        engine = {"batching": "continuous" if guessed_static else "static"}
        kind = LLM("simulated", launcher="inline", engine_options=engine, policy_options=options)
        kind._static = guessed_static  # as of an engine whose name does not tell
        running = App(chat=kind, state={"history": False}).run()
        await running.start()
        await asks(running, 3)
        assert "policy_options do not fit policy" in caplog.text
        await running.stop(1.0)
        running.ledger.check(idle=True)

    clock.run(main())


async def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, go_on = threading.Event(), threading.Event()
    opened = SampleStore.open

    def slowly(folder: Path, keep: Any) -> SampleStore:
        begun.set()
        go_on.wait(10)
        return opened(folder, keep)

    async def fails(self: Any) -> None:
        await asyncio.to_thread(begun.wait, 10)
        asyncio.get_running_loop().call_later(0.2, go_on.set)
        raise EngineStartError("no engine today")

    monkeypatch.setattr(SampleStore, "open", slowly)
    monkeypatch.setattr("foreserve.fleet.replicas.Replicas.start", fails)
    tasks = asyncio.all_tasks()
    running = app(tmp_path).run()
    with pytest.raises(EngineStartError, match="no engine today"):
        await running.start()
    assert asyncio.all_tasks() == tasks
    assert not [thread.name for thread in threading.enumerate() if thread.name == "foreserve-learning"]


@pytest.mark.skipif(bool(unsupported()), reason=unsupported())
@pytest.mark.parametrize("learns", [True, False])
async def test_what_workers_import_is_remembered_unless_that_is_turned_off(tmp_path: Path, monkeypatch, learns: bool):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # differs between a test's parts, and so would the keys
    packages, code = tmp_path / "packages", tmp_path / "code.py"
    packages.mkdir()
    (packages / "imported_lazily.py").write_text("import time\n\ntime.sleep(0.2)  # long enough to be worth it\n")
    code.write_text(
        "import sys\n\nthere = 'imported_lazily' in sys.modules\n\n\n"
        "class Lazy:\n    def __init__(self):\n        import imported_lazily\n\n"
        "    def __call__(self) -> bool:\n        return there\n"
    )
    words: dict[str, Any] = {"env": {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}}
    state, runtime = {"folder": str(tmp_path / "state")}, {"learn_imports": learns}
    found = []
    for _ in range(2):
        running = App(f=Function(f"{code}:Lazy", **words), state=state, runtime=runtime).run()
        await running.start()
        kind = running.services["f"].kind
        assert isinstance(kind, Function)
        request = Request(id="r", service="f", payload=kind.call({}), arrival=asyncio.get_running_loop().time())
        found += [item async for items in running.services["f"].submit(request) for item in items]
        async with asyncio.timeout(20):
            while learns and not (tmp_path / "state" / "imports.json").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await running.stop(1.0)
    assert found == [False, learns]
    assert (tmp_path / "state" / "imports.json").exists() == learns
