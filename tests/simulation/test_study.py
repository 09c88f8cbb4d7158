from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

import foreserve as fs
from foreserve.app import App
from foreserve.core import Outcome
from foreserve.dispatch.flight import Flight
from foreserve.errors import ConfigError
from foreserve.ports import Launcher
from foreserve.services.learning import Learner
from foreserve.services.llm import LLM
from foreserve.simulation.faults import parse_faults
from foreserve.simulation.stage import Happened, Stage
from foreserve.simulation.study import LEAST_TRAININGS, most_trainings, simulate
from foreserve.traces.row import TraceRow
from tests.simulation.traces import PROFILE, Rows, chat, poisson, profiles


class Plan:
    """Nothing goes wrong."""

    stage: Stage | None = None
    launcher: Launcher | None = None

    def __init__(self) -> None:
        self.happened: list[Happened] = []
        self.struck: Counter[str] = Counter()

    def launching(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def rows(self, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        return rows

    def begin(self, stage: Stage) -> None:
        assert stage.running.started
        assert stage.launcher is self.launcher
        assert stage.drive.submitted == 0
        self.stage = stage


@fs.function
def shout(text: str) -> str:
    return text.upper()


def test_every_request_ends_and_is_counted_once():
    heard: list[Outcome] = []
    result = simulate(chat(replicas=2), profiles(), poisson(400, 8.0), observers=[heard.append])
    assert result.total.requests == len(heard) == 400
    assert sum(result.total.outcomes.values()) == 400
    assert result.total.outcomes["done"] == 400
    assert result.services["chat"].tally == result.total
    assert result.ended_s > result.span_s > 30


def test_a_seed_gives_the_same_bytes():
    def run(seed: int) -> bytes:
        trace = poisson(500, 12.0, seed=seed, deadline_s=8.0)
        return msgspec.json.encode(simulate(chat(replicas=2), profiles(), trace, seed=seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_more_replicas_wait_less_and_are_less_busy():
    few = simulate(chat(replicas=1), profiles(), poisson(300, 8.0))
    many = simulate(chat(replicas=4), profiles(), poisson(300, 8.0))
    assert few.total.e2e
    assert many.total.e2e
    assert few.total.e2e.p50 > many.total.e2e.p50
    one, four = few.services["chat"], many.services["chat"]
    assert one.busy
    assert four.busy
    assert one.busy > four.busy
    assert one.need_replicas == pytest.approx(four.need_replicas)
    assert four.replica_hours == pytest.approx(4 * many.ended_s / 3600, rel=0.02)


def test_overload_is_shed_with_its_reason():
    result = simulate(chat(queue={"max_waiting": 4}), profiles(), poisson(300, 30.0))
    assert result.total.outcomes["shed"] > 50
    assert result.total.codes == {"shed": result.total.outcomes["shed"]}
    assert any("the queue is full" in reason for reason in result.total.reasons)
    assert result.total.good == result.total.outcomes["done"]


def test_a_service_without_profile_is_told_how_to_get_one():
    with pytest.raises(
        ConfigError, match=r"service 'chat' has no engine profile.*foreserve calibrate.*--profile chat="
    ):
        simulate(chat(), {}, poisson(3, 1.0))


def test_what_cannot_be_simulated_is_left_out_unless_it_is_asked_for():
    app = App(chat=LLM("simulated"), shout=shout, state={"history": False})
    result = simulate(app, profiles(), poisson(10, 2.0))
    assert any("shout is left out" in note for note in result.notes)
    with pytest.raises(ConfigError, match=r"requests for a service 'shout'.*valid: chat"):
        simulate(app, profiles(), poisson(10, 2.0, service="shout"))
    with pytest.raises(ConfigError, match=r"no service that can be simulated \(shout is a function\)"):
        simulate(App(shout=shout), profiles(), poisson(10, 2.0))


def test_services_are_told_apart():
    app = App(chat=LLM("simulated"), code=LLM("simulated"), state={"history": False})
    rows = [
        TraceRow(arrival=i, input_tokens=20, output_tokens=5, service=["chat", "code"][i % 3 > 0]) for i in range(30)
    ]
    result = simulate(app, {"chat": PROFILE, "code": PROFILE}, Rows(rows))
    assert {name: each.tally.requests for name, each in result.services.items()} == {"chat": 10, "code": 20}
    assert result.total.requests == 30


def test_trainings_of_a_long_trace_are_bounded_and_told():
    rows = [TraceRow(arrival=i * 7200.0, input_tokens=20, output_tokens=5) for i in range(84)]
    result = simulate(chat(), profiles(), Rows(rows))
    assert any(f"84 requests takes at most {LEAST_TRAININGS} trainings" in note for note in result.notes)
    assert result.total.outcomes["done"] == 84


@pytest.mark.parametrize("hours", [1, 60])
def test_trainings_are_as_many_as_the_rows_are_worth(monkeypatch: pytest.MonkeyPatch, hours: int):
    assert [most_trainings(rows) for rows in (0, 19_000, 100_000, 10**6)] == [4, 4, 20, 40]
    trained: list[int] = []
    train = Learner.train

    async def counted(self: Learner) -> str:
        trained.append(1)
        return await train(self)

    monkeypatch.setattr(Learner, "train", counted)
    rows = [TraceRow(arrival=i * 3.6 * hours, input_tokens=20, output_tokens=1 + i % 7) for i in range(1000)]
    result = simulate(chat(), profiles(), Rows(rows))
    assert any(f"every {899.1 * hours:.0f} s, not every 180 s" in note for note in result.notes)
    assert 1 <= len(trained) <= 5


def test_faults_see_the_stage_and_the_rows():
    class Twice(Plan):
        def rows(self, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
            for row in rows:
                yield row
                yield row

    plan = Twice()
    result = simulate(chat(), profiles(), poisson(50, 2.0), faults=plan)
    assert result.total.requests == 100
    assert plan.stage is not None
    assert list(plan.stage.twins) == ["chat"]


def test_what_a_callback_raises_ends_the_run():
    class Wrong(Plan):
        def begin(self, stage: Stage) -> None:
            asyncio.get_running_loop().call_later(1.0, int, "no number")

    with pytest.raises(ValueError, match="no number"):
        simulate(chat(), profiles(), poisson(50, 2.0), faults=Wrong())


def test_prefixes_that_an_engine_keeps_are_found_again():
    keeps = msgspec.structs.replace(PROFILE, prefix_caching=True, block_tokens=16)
    rows = [TraceRow(arrival=at, input_tokens=1100, output_tokens=5, prefix=(7, 8)) for at in range(20)]
    with_, without = (simulate(chat(), {"chat": profile}, Rows(rows)).total for profile in (keeps, PROFILE))
    assert without.cached_tokens == 0
    assert with_.cached_tokens > 0.8 * with_.prompt_tokens
    assert with_.ttft
    assert without.ttft
    assert with_.ttft.p50 < without.ttft.p50


def test_a_result_has_the_settings_without_what_may_be_secret():
    result = simulate(chat(policy="fcfs", env={"TOKEN": "hush"}), profiles(), poisson(3, 1.0))
    assert result.settings["chat"]["policy"] == "fcfs"
    assert b"TOKEN" in msgspec.json.encode(result)
    assert b"hush" not in msgspec.json.encode(result)


def test_an_empty_trace_is_a_run_of_nothing():
    result = simulate(chat(), profiles(), Rows([]))
    assert result.total.requests == 0
    assert result.total.e2e is None


def test_a_run_under_faults_is_checked(monkeypatch: pytest.MonkeyPatch):
    rows = poisson(100, 10.0, deadline_s=1.0)
    assert simulate(chat(), profiles(), rows, faults=parse_faults("load_spike", 1)).findings == []
    monkeypatch.setattr(Flight, "expire", lambda self, loop, expired: None)
    found = simulate(chat(policy="fcfs"), profiles(), rows, faults=parse_faults("load_spike", 1)).findings
    assert found
    assert all(each.startswith("deadline at ") for each in found)
    assert not logging.getLogger("foreserve").handlers


def test_what_a_recording_lost_is_told():
    trace = poisson(5, 2.0)
    trace.header = msgspec.structs.replace(trace.header, lost=12)
    notes = simulate(chat(), profiles(), trace).notes
    assert "12 more requests came while the trace was recorded and are not in it" in notes


def test_a_run_in_which_nothing_was_done_says_so_first():
    result = simulate(chat(), profiles(), poisson(5, 1.0, deadline_s=1e-9), notes=["a note"])
    assert result.notes == [
        "warning: chat: of 5 requests not one was done: its deadline passed while it ran (5 of them)",
        "a note",
    ]


def test_without_replicas_nothing_is_simulated():
    with pytest.raises(ConfigError, match=r"service 'chat' has no replicas.*`chat\.replicas` to 1 or more"):
        simulate(chat(replicas=0), profiles(), poisson(5, 1.0))
