from __future__ import annotations

import msgspec
import pytest

from foreserve import App
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.engines.generation import Generate
from foreserve.errors import Unavailable
from foreserve.gateway import recording as module
from foreserve.gateway.recorded import Ids
from foreserve.gateway.recording import Recording, Recordings
from tests.gateway.scripted import ScriptedLLM


def request(name: str, tenant: str = "a") -> Request:
    payload = Generate(prompt=[1, 2, 3], max_tokens=4)
    return Request(id=name, service="chat", payload=payload, arrival=0.0, tenant=tenant)


def outcome(name: str) -> Outcome:
    return Outcome(id=name, service="chat", kind=OutcomeKind.DONE, arrival=0.0, ended=1.0)


def came(recording: Recording, asked: Request) -> bool:
    return recording.came(None, asked, Ids(asked.payload))


@pytest.fixture
async def recordings() -> Recordings:
    return Recordings(App(chat=ScriptedLLM(), state={"history": False}).run())


async def test_a_reader_that_is_too_slow_is_told_what_it_lost(recordings, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    recording = recordings.begin(tenant=None, block_tokens=32, text=False, seconds=None)
    for n in range(10):
        assert came(recording, request(f"r{n}"))
        recording.ended(outcome(f"r{n}"), None)
    lines = [msgspec.json.decode(line) for line in (await recording.next()).splitlines()]
    assert len(lines) == 5
    assert lines[-1] == {"foreserve_trace": "lost", "rows": 7}
    came(recording, request("x"))
    recording.ended(outcome("x"), None)
    assert len((await recording.next()).splitlines()) == 1  # it is told once


async def test_what_is_on_its_way_is_bounded_too(recordings, monkeypatch):
    monkeypatch.setattr(module, "MOST_OPEN", 1)
    recording = recordings.begin(tenant=None, block_tokens=32, text=False, seconds=None)
    assert came(recording, request("a"))
    assert not came(recording, request("b"))
    recording.forget("a")
    assert came(recording, request("c"))


async def test_what_cannot_be_recorded_is_served_all_the_same(recordings, monkeypatch, caplog):
    recording = recordings.begin(tenant=None, block_tokens=32, text=False, seconds=None)
    monkeypatch.setattr(module, "came", lambda *_, **__: 1 / 0)
    assert not came(recording, request("a"))
    assert "request a cannot be recorded" in caplog.text
    assert b'{"foreserve_trace":"lost","rows":1}' in await recording.next()


async def test_when_the_server_stops_what_has_ended_can_still_be_read(recordings):
    recording = recordings.begin(tenant=None, block_tokens=32, text=False, seconds=60.0)
    came(recording, request("a"))
    came(recording, request("open"))
    recording.ended(outcome("a"), None)
    recordings.close()
    assert len((await recording.next()).splitlines()) == 2
    assert await recording.next() is None
    with pytest.raises(Unavailable, match="the server is stopping"):
        recordings.begin(tenant=None, block_tokens=32, text=False, seconds=None)
    recordings.end(recording)
    recordings.end(recording)


async def test_a_row_that_no_reader_would_take_is_lost_and_spoils_nothing(recordings):
    recording = recordings.begin(tenant=None, block_tokens=32, text=False, seconds=None)
    at_once = msgspec.structs.replace(request("soon"), deadline=1e-7)
    came(recording, at_once)
    recording.ended(outcome("soon"), None)
    came(recording, msgspec.structs.replace(request("worthless"), utility=float("nan")))
    recording.ended(outcome("worthless"), None)
    lines = [msgspec.json.decode(line) for line in (await recording.next()).splitlines()]
    assert lines[1]["deadline_s"] == 1e-6
    assert lines[2] == {"foreserve_trace": "lost", "rows": 1}


async def test_bytes_are_bounded_too(recordings, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    monkeypatch.setattr(module, "BATCH_BYTES", 300)
    recording = recordings.begin(tenant=None, block_tokens=16, text=False, seconds=None)
    for n in range(40):
        if came(recording, request(f"r{n}")):
            recording.ended(outcome(f"r{n}"), None)
    batches = [await recording.next()]
    while b':"lost"' not in batches[-1]:
        batches.append(await recording.next())
    assert len(batches) > 2
    assert all(len(batch) < 600 for batch in batches)
    assert b"".join(batches).count(b"arrival") < 15
    assert recording._rows_bytes == recording._coming_bytes == 0
    assert came(recording, request("a"))
    assert came(recording, request("b"))
    assert not came(recording, request("c"))  # two of them have some 1000 bytes
    recording.forget("a")
    assert came(recording, request("d"))


async def test_one_tenant_cannot_take_every_place(recordings):
    def begin(tenant: str | None) -> Recording:
        return recordings.begin(tenant=tenant, block_tokens=32, text=False, seconds=None)

    first = begin("a")
    begin("a")
    with pytest.raises(Unavailable, match="2 recordings of this tenant run already"):
        begin("a")
    begin("b")
    with pytest.raises(Unavailable, match="3 recordings of single tenants run already"):
        begin("c")
    begin(None)
    recordings.end(first)
    begin("a")
