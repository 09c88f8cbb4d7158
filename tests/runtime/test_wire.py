import asyncio
import time

import pytest
import zmq

from foreserve.runtime import wire
from foreserve.runtime.wire import HIGH_WATER, TURN, Wire, socket


class Pair:
    """Two wires over a Unix socket in a folder."""

    def __init__(self, folder, max_message_bytes=1_000_000):
        self.context = zmq.Context()
        left = socket(self.context, zmq.SocketType.DEALER, max_message_bytes)
        right = socket(self.context, zmq.SocketType.DEALER, max_message_bytes)
        right.bind(f"ipc://{folder}/s")
        left.connect(f"ipc://{folder}/s")
        self.heard, self.rooms = [], 0
        self.left = Wire(left, lambda _: None, self._room)
        self.right = Wire(right, lambda frames: self.heard.append(frames[0]))

    def _room(self):
        self.rooms += 1

    async def until(self, true):
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110  # what is tested is what would set an event
                await asyncio.sleep(0.005)

    def close(self):
        self.left.close()
        self.right.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("w"))
    yield pair
    pair.close()


async def test_a_burst_arrives_in_order_in_several_turns(pair):
    sent = [b"%d" % number for number in range(10 * TURN)]
    for data in sent:
        assert pair.left.send(data)
    await pair.until(lambda: len(pair.heard) == len(sent))
    assert pair.heard == sent


async def test_what_came_while_the_loop_was_blocked_is_read_right_after(pair):
    pair.left.send(b"before")
    await pair.until(lambda: pair.heard)
    pair.left.send(b"one")
    pair.left.send(b"two")
    time.sleep(0.3)  # noqa: ASYNC251  # it is the loop that shall be blocked
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pair.heard == [b"before", b"one", b"two"]


async def test_a_full_peer_refuses_and_tells_of_room(pair):
    taken = 0
    while pair.left.send(bytes(1000)):  # both sides are in this loop, so nothing is read meanwhile
        taken += 1
        assert taken < 10 * HIGH_WATER
    assert taken >= HIGH_WATER
    assert pair.rooms == 0
    await pair.until(lambda: pair.rooms)
    assert pair.left.send(b"last")
    await pair.until(lambda: pair.heard and pair.heard[-1] == b"last")
    assert len(pair.heard) == taken + 1


async def test_a_handler_that_raises_does_not_stop_the_reading(tmp_path):
    pair = Pair(tmp_path)
    pair.right._heard = lambda frames: pair.heard.append(int(frames[0]))
    for data in (b"1", b"x", b"3"):
        pair.left.send(data)
    await pair.until(lambda: len(pair.heard) == 2)
    assert pair.heard == [1, 3]
    pair.close()


async def test_no_turn_after_the_close(tmp_path):
    pair = Pair(tmp_path)
    pair.left.send(b"1")
    pair.close()
    pair.close()
    await asyncio.sleep(0.02)
    assert wire.HELLO not in pair.heard
