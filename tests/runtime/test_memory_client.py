"""The worker's line where its owner is of no use; with real owners it is in `tests/fleet/test_memory.py`."""

import sys
import threading

import pytest

from foreserve.core import WeightsRef
from foreserve.runtime import memory_client
from foreserve.runtime.leases import Pending
from foreserve.runtime.memory_client import Client
from foreserve.runtime.memory_messages import client_socket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are handed out on Linux")


def test_what_no_owner_ever_answers_is_got_without_one(tmp_path, monkeypatch):
    """As where each is killed by what it is asked for: a load that takes all the memory there is."""
    monkeypatch.setattr(memory_client, "AGAIN_S", 0.001)
    monkeypatch.setattr(memory_client, "TRIES", 3)
    lines = []

    def die():
        while len(lines) < 3:
            line, _ = listening.accept()
            lines.append(line.recv(1000))
            line.close()

    with client_socket() as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        owners = threading.Thread(target=die, daemon=True)
        owners.start()
        pending, alone = Pending(WeightsRef(name="w", source="/w")), threading.Event()
        wanted = []
        client = Client(str(tmp_path / "socket"), lambda pendings: (wanted.extend(pendings), alone.set()))
        client.want([pending])
        assert alone.wait(10)
        owners.join(10)
    assert wanted == [pending]
    assert all(lines)
