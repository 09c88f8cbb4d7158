"""What `foreserve serve --upstream` does beside serving: it looks for what late servers have, and knows admins."""

from __future__ import annotations

import asyncio

import pytest
from tests.engines.scripted_server import scripted

from foreserve.app import App
from foreserve.cli.serve import _find_more, _server
from foreserve.errors import ConfigError
from foreserve.services.discovery import Discovery
from foreserve.services.upstream import Upstream


async def test_what_a_late_server_has_alone_is_served_without_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreserve.cli.serve.FIND_S", 0.05)
    async with scripted(models=("a",)) as one, scripted(models=("b",)) as late:
        await late.stop()
        found = Discovery([one.url, late.url])
        running = App(state={"history": False}, **await found.services()).run()  # type: ignore[arg-type]
        await running.start()
        finding = asyncio.create_task(_find_more(running, found))
        await asyncio.sleep(0.2)
        assert list(running.services) == ["a"]
        await late.start()
        await asyncio.wait_for(finding, 5)
        assert running.services["b"].ready
        await running.stop(0.0)


def test_an_admins_key_is_one_of_the_keys() -> None:
    made = _server(App(m=Upstream(["http://h"], model="m")), None, None, ["user"], ["root"])
    assert [(key.key, key.admin) for key in made.api_keys] == [("user", False), ("root", True)]
    with pytest.raises(ConfigError, match="--admin-key is empty"):
        _server(App(m=Upstream(["http://h"], model="m")), None, None, [], [" "])
