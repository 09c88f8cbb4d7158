"""What was decided, live and simulated, is decided again from what was recorded of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from foreserve import registry
from foreserve.app import App
from foreserve.core import Outcome, Work
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.decisions import Picked
from foreserve.engines.profile import linear
from foreserve.errors import ConfigError
from foreserve.fleet.inline import InlineLauncher
from foreserve.ports import Pick, Room, Wait
from foreserve.services.llm import LLM
from foreserve.simulation.drive import Drive
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.replay import Instead, replay
from foreserve.simulation.twin import Twin
from tests.simulation.trials import rows, trial

FAULTS = "worker_death:every_s=8,client_cancel:share=0.2,client_retry,mispredicted_lengths"


def recorded(path: Path, **settings: Any) -> Path:
    found = trial(FAULTS, 3, count=300, decisions=path, **settings)
    assert not found.findings
    return path


@pytest.mark.parametrize(
    ("policy", "placement"),
    [
        *(
            (policy, placement)
            for policy in ("hrrn", "fcfs", "magnus", "fixed")
            for placement in ("least_requests", "round_robin")
        ),
        *(("hrrn", placement) for placement in ("anticipated", "prefix_affinity", "least_tokens")),
        ("fixed", "anticipated"),
    ],
)
def test_a_simulated_recording_is_decided_again(tmp_path: Path, policy: str, placement: str):
    admission = {"hrrn": "foreseen", "fcfs": "bounded", "magnus": "auto", "fixed": "patient"}[policy]
    queue = {"max_waiting": 12, "max_wait_s": 8.0, "admission": admission}
    found = replay(recorded(tmp_path / "d.jsonl", policy=policy, placement=placement, queue=queue), Instead())
    assert not found.differed, found.first
    assert found.agreed["picked"] > 100
    assert found.agreed["placed"] > 50
    assert found.agreed["admitted"] >= 300
    assert (found.agreed["stood"] > 0) is (policy in ("hrrn", "magnus"))


def test_a_recording_of_the_same_seed_is_the_same_to_the_byte(tmp_path: Path):
    one, other = (recorded(tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl"))
    assert one == other
    assert one.count(b"payload") == one.count(b'"payload":null')


@pytest.mark.parametrize("policy", ["hrrn", "magnus", "fixed"])
def test_recording_changes_nothing(tmp_path: Path, policy: str):
    plain, told = (trial(FAULTS, 3, policy=policy, decisions=path) for path in (None, tmp_path / "d.jsonl"))
    assert plain == told


class Favourite:
    """A ranked placement of a user's own: the fullest first."""

    by_rank: ClassVar[bool] = True
    heard: ClassVar[list[tuple[str, str]]] = []

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        raise AssertionError("it is asked by rank")

    def rank(self, room: Room) -> tuple[int, str]:
        return -room.running, room.replica

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> None:
        self.heard += [(work.id, replica) for work in works]


def register(patch: pytest.MonkeyPatch, what: str, name: str, part: type) -> None:
    """As if a package of a user's had it among its entry points."""
    group = registry.GROUPS[what]
    point = EntryPoint(name=name, value=f"{part.__module__}:{part.__qualname__}", group=group)
    known, inner = {**registry._group(group), name: point}, registry._group
    patch.setattr(registry, "_group", lambda asked: known if asked == group else inner(asked))


def test_a_ranked_placement_of_a_users_own_is_asked_and_told_as_it_was_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    register(monkeypatch, "placement", "favourite", Favourite)
    heard = []
    path = tmp_path / "d.jsonl"
    for words in ({}, {"decisions": path}):
        monkeypatch.setattr(Favourite, "heard", [])
        assert not trial("worker_death:every_s=8", 3, placement="favourite", **words).findings
        heard.append(Favourite.heard)
    assert len(heard[0]) > 100
    assert heard[0] == heard[1]
    monkeypatch.setattr(Favourite, "heard", [])
    found = replay(path, Instead())
    assert not found.differed, found.first
    assert found.agreed["placed"] > 100
    assert Favourite.heard == heard[0]
    assert replay(path, Instead(placement="least_requests")).differed["placed"]


@pytest.mark.parametrize("policy", ["hrrn", "magnus"])
def test_numbers_without_an_end_are_decided_by_again(tmp_path: Path, policy: str):
    queue = {"max_waiting": 12, "max_wait_s": float("inf"), "admission": "patient"}
    found = replay(recorded(tmp_path / "d.jsonl", policy=policy, queue=queue), Instead())
    assert not found.differed, found.first
    assert found.agreed["picked"] > 100


LIVE = {
    "hrrn": {"placement": "least_requests", "admission": "foreseen"},
    "fcfs": {"placement": "round_robin", "admission": "bounded"},
    "magnus": {"placement": "round_robin", "admission": "foreseen"},
    "fixed": {"placement": "least_requests", "admission": "bounded"},
}


@pytest.mark.parametrize("policy", LIVE)
def test_a_live_recording_is_decided_again(tmp_path: Path, policy: str):
    """On the real event loop, in real time, with engines that only take time."""
    path = tmp_path / "decisions.jsonl"
    queue = {"max_waiting": 20, "max_wait_s": 2.0, "admission": LIVE[policy]["admission"]}
    outcomes = asyncio.run(live(path, policy, LIVE[policy]["placement"], queue))
    found = replay(path, Instead())
    assert not found.differed, found.first
    assert found.agreed["admitted"] == len(outcomes) == 150
    assert found.agreed["placed"] > 20
    assert {"done", "shed"} <= {outcome.kind for outcome in outcomes}


async def live(path: Path, policy: str, placement: str, queue: dict[str, Any]) -> list[Outcome]:
    oracle = Oracle()
    kind = LLM("simulated", policy=policy, placement=placement, queue=queue, replicas=2)
    twin = Twin("chat", kind, linear(slots=4, kv_tokens=3000, decode_s=0.001, decode_s_per_seq=0.0001), oracle)
    running = App(chat=twin, state={"history": False, "decisions": str(path)}).run(InlineLauncher())
    outcomes: list[Outcome] = []
    running.observers.append(outcomes.append)
    await running.start()
    await Drive(running, {"chat": twin}, oracle, block_tokens=512).play(rows(150, per_s=200.0))
    await running.stop(0.0)
    return outcomes


def lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def written(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    return path


def shorter(entries: list[dict[str, Any]]) -> None:
    """One waiting request was foreseen to be very short."""
    added = [entry for entry in entries if (entry.get("work") or {}).get("forecast")]
    added[len(added) // 2]["work"]["forecast"]["seconds"] = 0.001


def emptier(entries: list[dict[str, Any]]) -> None:
    """A replica had less room when somebody was picked."""
    picked = [entry for entry in entries if entry["call"] == "picked" and entry.get("pick")]
    alone = [entry["rooms"][0] for entry in picked if len(entry["rooms"]) == 1 and isinstance(entry["rooms"][0], dict)]
    alone[5]["free"]["slots"] = 0.0


def fuller(entries: list[dict[str, Any]]) -> None:
    """Many more waited when somebody was taken in."""
    taken = [entry for entry in entries if entry["call"] == "admitted" and not entry.get("refusal")]
    taken[50]["view"]["waiting"] = 1000


@pytest.mark.parametrize("tamper", [shorter, emptier, fuller])
def test_a_tampered_input_is_found(tmp_path: Path, tamper: Any):
    path = recorded(tmp_path / "d.jsonl")
    assert not replay(path, Instead()).differed
    entries = lines(path)
    tamper(entries)
    found = replay(written(tmp_path / "t.jsonl", entries), Instead())
    assert found.first is not None
    assert found.differed.total() >= 1


def test_another_policy_is_told_by_how_much_it_would_have_differed(tmp_path: Path):
    path = recorded(tmp_path / "d.jsonl", policy="fcfs")
    same, other = (replay(path, Instead(policy=policy)) for policy in ("fcfs", "hrrn"))
    assert not same.differed
    assert 0 < other.differed["picked"] < other.differed["picked"] + other.agreed["picked"]
    assert other.differed["admitted"] == 0


class Hesitant(FirstCome):
    """First come, first served, as another version of its code might be: it waits once where it did not."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        self._asked += 1
        return Wait(until=now + 1.0) if self._asked == HESITATES else super().pick(rooms, now)


HESITATES = 40


def test_code_that_decides_one_thing_otherwise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = recorded(tmp_path / "d.jsonl", policy="fcfs")
    register(monkeypatch, "batch policy", "fcfs", Hesitant)
    found = replay(path, Instead())
    assert found.differed == {"picked": 1}
    assert found.first is not None
    assert isinstance(found.first.now, Picked)
    assert found.first.now.until is not None


def test_other_options_and_another_admission(tmp_path: Path):
    path = recorded(tmp_path / "d.jsonl", policy="hrrn", queue={"max_waiting": 3})
    assert replay(path, Instead(options={"aging": 0.0})).differed["picked"]
    assert replay(path, Instead(admission="always")).differed["admitted"]
    with pytest.raises(ConfigError, match=r"policy_options\.agin: unknown option"):
        replay(path, Instead(options={"agin": 0.0}))


def test_a_line_that_was_cut_off_is_left_out_and_another_is_an_error_with_its_number(tmp_path: Path):
    path = recorded(tmp_path / "d.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert replay(path, Instead()).calls == whole.count(b"\n") - 2
    path.write_bytes(whole.replace(b'"call":"picked"', b'"call":"pickled"', 1))
    with pytest.raises(ConfigError, match=r"d\.jsonl:\d+: no line of a recording"):
        replay(path, Instead())
    entries = lines(written(path, [msgspec.json.decode(line) for line in whole.splitlines()]))
    del entries[next(at for at, entry in enumerate(entries) if entry["call"] == "add")]
    first = next(at for at, entry in enumerate(entries) if entry["call"] == "admitted")
    del entries[first]
    with pytest.raises(ConfigError, match="lines are missing"):
        replay(written(tmp_path / "m.jsonl", entries), Instead())
    with pytest.raises(ConfigError, match="in its first line alone"):
        replay(written(tmp_path / "n.jsonl", lines(path)[1:]), Instead())
