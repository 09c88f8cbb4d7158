"""The memory owner's process: `PYTHON bootstrap.py memory_process FD SETTINGS LOG_LEVEL`.

It serves on the listening socket `FD` and ends with its gateway, which holds the other end of its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys

import msgspec

from foreserve.runtime.memory_owner import Owner, OwnerSettings


async def serve(fd: int, settings: OwnerSettings) -> None:
    """Until standard input ends."""
    listening = socket.socket(fileno=fd)
    listening.set_inheritable(False)  # a user's loader shall not answer in our place
    owner = Owner(listening, settings)
    ended = asyncio.Event()

    def hear() -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            ended.set()

    asyncio.get_running_loop().add_reader(0, hear)
    await ended.wait()
    owner.close()
    if settings.folder is not None:
        shutil.rmtree(settings.folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    fd, settings, level = arguments
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(serve(int(fd), msgspec.json.decode(settings, type=OwnerSettings)))
    # At once: threads may be in the middle of a long read, and nothing of theirs is wanted any more.
    logging.shutdown()
    os._exit(0)
