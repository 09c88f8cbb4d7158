"""A real server on a loopback port, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from foreserve.app import App
from foreserve.gateway.http import create_app
from foreserve.running import Running


class House:
    """A served app: where it is, and its insides, to be used through `ask` alone."""

    def __init__(self, url: str, running: Running, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.running = running
        self._loop = loop

    def ask(self, question: Callable[[Running], Any]) -> Any:
        """Run `question` on the server's loop."""

        async def answer() -> Any:
            return question(self.running)

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(10)


@contextmanager
def serving(app: App, start: bool = True, drain_s: float = 5.0) -> Iterator[House]:
    """Serve `app` until the block ends; then nothing may be open and the ledger must balance."""
    up = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        running = app.run()
        try:
            if start:
                await running.start()
            config = uvicorn.Config(create_app(running), port=0, log_config=None, access_log=False, lifespan="on")
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            task = asyncio.create_task(server.serve())
            while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            found.extend((House(f"http://127.0.0.1:{port}", running, asyncio.get_running_loop()), server))
        except BaseException as error:
            found.append(error)
            raise
        finally:
            up.set()
        await task
        await running.stop(drain_s)
        running.ledger.check(idle=True)

    failed: list[BaseException] = []

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=main, name="house")
    thread.start()
    try:
        assert up.wait(30)
        if isinstance(found[0], BaseException):
            raise found[0]
        yield found[0]
    finally:
        if len(found) == 2:
            found[1].should_exit = True
        thread.join(30)
        assert not thread.is_alive()
    assert not failed, failed
