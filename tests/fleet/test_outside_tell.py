from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp import web

from foreserve.fleet import outside_tell
from foreserve.fleet.outside_tell import Command, Untold, Webhook, Wish

WISH = Wish(
    id="m-1", service="org/m", wanted=3, current=1, why="more is coming", used=("http://a",), unused=("http://b", "http://c")
)  # fmt: skip

TELLS = """
import json, os, sys
names = ("SERVICE", "WANTED", "CURRENT", "WHY", "USED", "UNUSED", "WISH", "API_KEY")
told = {name: os.environ.get("FORESERVE_" + name) for name in names}
json.dump([sys.argv[2:], told], open(sys.argv[1], "w"))
print("starting")
print(" http://gpu9:8000 ")
"""


async def test_a_command_is_told_by_its_arguments_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORESERVE_API_KEY", "secret")
    out = tmp_path / "told"
    argv = [sys.executable, "-c", TELLS, str(out), "--replicas={wanted}", "{service}/{current}", "$HOME;x"]
    assert await Command(argv).tell(WISH) == ["http://gpu9:8000"]
    arguments, told = json.loads(out.read_text())
    assert arguments == ["--replicas=3", "org/m/1", "$HOME;x"]
    assert told == {
        "SERVICE": "org/m", "WANTED": "3", "CURRENT": "1", "WHY": "more is coming", "USED": "http://a",
        "UNUSED": "http://b http://c", "WISH": "m-1", "API_KEY": None,
    }  # fmt: skip


async def test_what_a_command_does_wrong_is_said() -> None:
    with pytest.raises(Untold, match="no-such-program cannot be run"):
        await Command(["no-such-program"]).tell(WISH)
    with pytest.raises(Untold, match="ended with status 3: no quota"):
        await Command([sys.executable, "-c", "print('no quota'); raise SystemExit(3)"]).tell(WISH)


async def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(1.5); open({str(alive)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(Untold, match=r"took longer than 0\.7 s"):
        await Command([sys.executable, "-c", parent], limit_s=0.7).tell(WISH)
    await asyncio.sleep(1.6)
    assert not alive.exists()


async def test_a_command_may_leave_a_server_running_that_holds_its_output() -> None:
    parent = "import subprocess; subprocess.Popen(['sleep', '4']); print('http://h:1', flush=True)"
    async with asyncio.timeout(3.5):
        assert await Command([sys.executable, "-c", parent]).tell(WISH) == ["http://h:1"]


async def test_a_commands_words_are_bounded() -> None:
    assert await Command([sys.executable, "-c", "print('x' * 10**6)"]).tell(WISH) == []


class Hook:
    """A webhook on loopback that answers by a list."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[Mapping[str, str], dict[str, object]]] = []

    async def __aenter__(self) -> Hook:
        app = web.Application()
        app.router.add_post("/scale", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/scale"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.seen.append((request.headers, await request.json()))
        status, body = self.answers.pop(0)
        return web.Response(status=status, body=body)


async def test_a_webhook_gets_the_wish_and_may_name_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "k")
    async with Hook((200, b'{"servers": ["http://gpu9:8000", 3]}'), (204, b""), (200, b"ok")) as hook:
        assert await Webhook(hook.url, "HOOK_KEY").tell(WISH) == ["http://gpu9:8000"]
        headers, body = hook.seen[0]
        assert body == {
            "id": "m-1", "service": "org/m", "wanted": 3, "current": 1, "why": "more is coming", "used": ["http://a"],
            "unused": ["http://b", "http://c"],
        }  # fmt: skip
        assert (headers["Idempotency-Key"], headers["Authorization"]) == ("m-1", "Bearer k")
        assert await Webhook(hook.url).tell(WISH) == []
        assert await Webhook(hook.url).tell(WISH) == []
        assert "Authorization" not in hook.seen[1][0]


async def test_a_webhook_is_tried_again_a_few_times_with_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_tell, "PAUSE_S", 0.01)
    async with Hook((500, b""), (429, b""), (200, b"")) as hook:
        assert await Webhook(hook.url).tell(WISH) == []
        assert {headers["Idempotency-Key"] for headers, _ in hook.seen} == {"m-1"}
    async with Hook(*[(503, b"later")] * 9) as hook:
        with pytest.raises(Untold, match="answers 503: later"):
            await Webhook(hook.url).tell(WISH)
        assert len(hook.seen) == outside_tell.TRIES
    async with Hook((403, b"no")) as hook:
        with pytest.raises(Untold, match="answers 403: no"):
            await Webhook(hook.url).tell(WISH)
    with pytest.raises(Untold, match="cannot be reached"):
        await Webhook("http://127.0.0.1:1").tell(WISH)
