"""The command against a real gateway in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from tests.engines.scripted_server import scripted
from tests.gateway.served import gateway
from typer.testing import CliRunner

from foreserve.app import App
from foreserve.cli.main import app
from foreserve.services.upstream import Upstream

run = CliRunner().invoke


class Fleet:
    gateway = one = two = other = ""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    made, up, loop_of = Fleet(), threading.Event(), []
    done = asyncio.Event()

    async def serve() -> None:
        async with scripted() as one, scripted() as two, scripted(models=("x",)) as other:
            made.one, made.two, made.other = one.url, two.url, other.url
            kinds = {"m": Upstream([one.url], model="m"), "n": Upstream([one.url], model="m")}
            async with gateway(App(state={"history": False}, **kinds)) as (url, _):  # type: ignore[arg-type]
                made.gateway = url
                loop_of.append(asyncio.get_running_loop())
                up.set()
                await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(20)
    yield made
    loop_of[0].call_soon_threadsafe(done.set)
    thread.join(20)


def test_list_add_and_remove(fleet: Fleet) -> None:
    at = ["--gateway", fleet.gateway]
    added = run(app, ["servers", "add", fleet.two, *at])
    assert (added.exit_code, added.output) == (0, f"m: {fleet.two} is ready\nn: {fleet.two} is ready\n")
    listed = run(app, ["servers", "list", *at], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert "reason" in listed.output
    assert listed.output.count(fleet.two) == listed.output.count(fleet.one) == 2
    assert run(app, ["servers", "list", *at], env={"COLUMNS": "60"}).output.count(fleet.two) == 2  # never cut
    removed = run(app, ["servers", "remove", fleet.two, "--service", "n", *at])
    assert (removed.exit_code, removed.output) == (0, f"n: {fleet.two} has left\n")
    again = run(app, ["servers", "remove", fleet.two, "--service", "n", *at])
    assert again.exit_code == 1
    assert f"there are: {fleet.one}" in again.output
    assert run(app, ["servers", "remove", fleet.two, "--no-wait", *at]).output == f"m: {fleet.two} leaves\n"


def test_what_does_not_fit_is_said(fleet: Fleet) -> None:
    refused = run(app, ["servers", "add", fleet.other, "--gateway", fleet.gateway])
    assert refused.exit_code == 1
    assert "has no model 'm'; it has x" in refused.output
    assert run(app, ["servers", "list", "--gateway", "http://127.0.0.1:1"]).exit_code == 2
    assert run(app, ["servers", "list", "--gateway", "127.0.0.1"]).exit_code == 2
