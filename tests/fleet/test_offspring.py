"""The books of a context whose other end is played here."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from foreserve.fleet.forked import Awaited, CannotFork, ForkLost
from foreserve.fleet.offspring import Offspring
from foreserve.runtime import forking
from foreserve.runtime.forking import Ended, Fork, Forked, NotForked, receive, to_forker, unsupported

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported())


@pytest.fixture
def line():
    ours, theirs = forking.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def ask(offspring: Offspring, control: socket.socket, heir: bool = False) -> Awaited:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return offspring.ask(control, "w", theirs, ("1",), {"A": "b"}, lambda _: None, heir)


async def test_what_is_asked_for_comes_and_ends(line):
    ours, theirs = line
    offspring = Offspring()
    assert offspring.idle
    for heir in (False, True):
        asked = ask(offspring, ours, heir)
        assert not offspring.idle
        heard = receive(theirs, to_forker)
        assert heard is not None
        message, fds = heard
        assert message == Fork(1 + heir, {"A": "b"}, ("1",), heir)
        assert len(fds) == 3
        for fd in fds:
            os.close(fd)
        command = [sys.executable, "-c", "input()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220
        offspring.heard(Forked(message.id, child.pid), [os.pidfd_open(child.pid)])
        process = await asked.process
        assert process.pid == child.pid
        assert (offspring.workers, offspring.forks, offspring.idle) == (1 - heir, 1, heir)
        child.kill()
        child.communicate()
        offspring.heard(Ended(child.pid, -signal.SIGKILL), [])
        process.close()
        assert (offspring.workers, offspring.idle) == (0, True)


async def test_what_does_not_come(line):
    ours, theirs = line
    offspring = Offspring()
    refused, left = ask(offspring, ours), ask(offspring, ours)
    offspring.heard(NotForked(1, "no process can be forked"), [])
    offspring.orphan("it is gone")
    theirs.close()
    unheard = ask(offspring, ours)
    for asked, why in ((refused, "no process can be forked"), (unheard, "it cannot be asked: ")):
        with pytest.raises(CannotFork, match=why):
            await asked.process
    with pytest.raises(ForkLost, match="it is gone"):  # it may have been forked, and not told of
        await left.process
    assert offspring.idle
    await asyncio.sleep(0)
