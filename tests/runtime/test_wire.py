import asyncio
import socket
import time

import pytest
import uvloop

from foreserve.runtime.wire import TURN_MESSAGES, UNREAD_BYTES, Wire, pair

LIMIT = 1_000_000


class Pair:
    """Two wires of one socket pair in this loop; the right one keeps what it hears."""

    def __init__(self, max_message_bytes: int = LIMIT) -> None:
        self.heard: list[bytes] = []
        self.gone: list[str] = []
        self.left_gone: list[str] = []
        self.rooms = 0
        left, self.right_socket = pair()
        self.left_socket = left
        self.left = Wire(left, lambda _: None, self.left_gone.append, self._room, max_message_bytes)
        self.right = Wire(self.right_socket, self.hear, self.gone.append, max_message_bytes=max_message_bytes)

    def hear(self, data: bytes) -> None:
        assert not self.gone
        self.heard.append(data)

    def _room(self) -> None:
        self.rooms += 1

    def close(self) -> None:
        self.left.close()
        self.right.close()


async def until(true):
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  # what is tested is what would set an event
            await asyncio.sleep(0.002)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a test's coroutine function on both kinds of loop; what a loop logs as an error fails the test."""

    def run(test, max_message_bytes=LIMIT):
        wrong = []

        async def whole():
            asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
            both = Pair(max_message_bytes)
            try:
                await test(both)
                await asyncio.sleep(0.01)
            finally:
                both.close()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(whole())
        assert wrong == []

    return run


def test_a_burst_arrives_in_order_in_several_turns(run):
    async def burst(pair):
        sent = [b"%d" % number * (number % 50) for number in range(20 * TURN_MESSAGES)]
        turns = 0
        for data in sent:
            assert pair.left.send(data)
        while len(pair.heard) < len(sent):
            before = len(pair.heard)
            await asyncio.sleep(0)
            assert len(pair.heard) - before <= 2 * TURN_MESSAGES
            turns += 1
            assert turns < 100_000
        assert pair.heard == sent
        assert turns >= 10

    run(burst)


def test_what_is_sent_leaves_before_the_caller_goes_on(run):
    async def at_once(pair):
        pair.right.close()
        ours, theirs = socket.socketpair()
        wire = Wire(ours, lambda _: None, lambda _: None)
        wire.send(b"now")
        assert theirs.recv(100, socket.MSG_DONTWAIT) == b"\x03\0\0\0now"
        wire.close()
        theirs.close()

    run(at_once)


def test_what_came_while_the_loop_was_blocked_is_read_right_after(run):
    async def blocked(pair):
        pair.left.send(b"before")
        await until(lambda: pair.heard)
        pair.left.send(b"one")
        pair.left.send(b"two")
        time.sleep(0.1)  # noqa: ASYNC251  # it is the loop that shall be blocked
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pair.heard == [b"before", b"one", b"two"]

    run(blocked)


def test_a_full_peer_refuses_and_tells_of_room(run):
    async def full(pair):
        taken, data = 0, bytes(100_000)
        while pair.left.send(data):  # both sides are in this loop, so nothing is read meanwhile
            taken += 1
            assert taken * len(data) < 2 * UNREAD_BYTES
        assert taken * len(data) > UNREAD_BYTES - len(data)
        assert not pair.left.send(data)
        assert not pair.left.written.is_set()
        assert pair.rooms == 0
        await until(lambda: pair.rooms)
        assert pair.left.send(b"last")
        await until(lambda: pair.heard and pair.heard[-1] == b"last")
        assert len(pair.heard) == taken + 1
        assert pair.left.written.is_set()
        assert pair.rooms == 1

    run(full)


def test_a_message_of_a_hundred_megabytes(run):
    async def large(pair):
        data = b"0123456789" * 10_000_000
        started = asyncio.get_running_loop().time()
        assert pair.left.send(data)
        assert pair.left.send(b"")
        assert pair.left.send(b"after")
        await until(lambda: len(pair.heard) == 3)
        assert pair.heard == [data, b"", b"after"]
        assert asyncio.get_running_loop().time() - started < 15  # quadratic copying takes minutes

    run(large, 100_000_000)


@pytest.mark.parametrize("piece", [1, 3, 7])
def test_frames_in_pieces(run, piece):
    async def pieces(pair):
        stream = b"".join(len(data).to_bytes(4, "little") + data for data in (b"one", b"", b"three", b"x" * 300))
        for at in range(0, len(stream), piece):
            pair.left_socket.send(stream[at : at + piece])
            await asyncio.sleep(0)
        await until(lambda: len(pair.heard) == 4)
        assert pair.heard == [b"one", b"", b"three", b"x" * 300]

    run(pieces)


def test_all_is_heard_before_the_end(run):
    async def end(pair):
        sent = [b"%d" % number for number in range(100)]
        for data in sent:
            assert pair.left.send(data)
        assert pair.left.written.is_set()
        pair.left.close()
        assert pair.heard == []
        await until(lambda: pair.gone)
        assert pair.heard == sent
        assert pair.gone == [""]
        assert pair.right.send(b"dropped")

    run(end)


def test_a_peer_that_ends_with_messages_unread(run):
    """The kernel tells of it as an error, after what the peer had written."""

    async def unread(pair):
        pair.right.send(b"last words")
        pair.left.send(b"never read")
        pair.right.close()
        await until(lambda: pair.left_gone)
        assert pair.left_gone == [""]
        assert pair.left.send(b"dropped")

    run(unread)


def test_a_sender_hears_what_the_peer_said_before_it_went(run):
    async def parting(pair):
        for number in range(100):
            pair.left.send(b"%d" % number)
        pair.left.close()
        for _ in range(100):
            assert pair.right.send(bytes(LIMIT))
        assert pair.right.written.is_set()
        await until(lambda: pair.gone)
        assert len(pair.heard) == 100

    run(parting)


def test_a_refused_sender_is_told_when_the_peer_has_gone(run):
    async def refused(pair):
        while pair.left.send(bytes(LIMIT)):
            pass
        pair.right.close()
        await until(lambda: pair.rooms)
        assert pair.left.send(b"dropped")
        assert pair.left.written.is_set()

    run(refused)


def test_a_peer_whose_process_has_ended_may_leave_the_socket_to_another(run):
    async def ended(pair):
        sent = [b"%d" % number * 300 for number in range(100)]
        for data in sent:
            pair.left.send(data)
        assert pair.left.written.is_set()
        pair.right.peer_ended()
        await until(lambda: pair.gone)
        assert pair.heard == sent
        assert pair.gone == [""]
        pair.left.send(b"of the other process")
        await asyncio.sleep(0.01)
        assert pair.heard == sent

    run(ended)


def test_a_message_too_long_ends_the_connection(run, caplog):
    async def long(pair):
        pair.left.send(bytes(LIMIT))
        pair.left.send(bytes(LIMIT + 1))
        pair.left.send(b"after")
        await until(lambda: pair.gone)
        assert pair.heard == [bytes(LIMIT)]
        assert pair.gone == [f"it sent a message of {LIMIT + 1} bytes; at most {LIMIT} are carried"]
        assert pair.gone[0] in caplog.text
        await asyncio.sleep(0.01)
        assert len(pair.gone) == 1

    run(long)


def test_a_message_too_long_that_has_come_whole(run):
    async def long(pair):
        for data in (b"first", bytes(200), b"after"):
            pair.left.send(data)
        await until(lambda: pair.gone)
        assert pair.heard == [b"first"]
        assert "at most 100 are carried" in pair.gone[0]

    run(long, 100)


def test_a_handler_that_raises_does_not_stop_the_reading(run, caplog):
    async def raises(pair):
        pair.right._heard = lambda data: pair.heard.append(int(data))
        for data in (b"1", b"x", b"3"):
            pair.left.send(data)
        await until(lambda: len(pair.heard) == 2)
        assert pair.heard == [1, 3]
        assert "a message was not handled" in caplog.text

    run(raises)


def test_a_handler_may_close_the_wire(run):
    async def closes(pair):
        pair.right._heard = lambda data: (pair.heard.append(data), pair.right.close())
        pair.left.send(b"1")
        pair.left.send(b"2")
        pair.left.close()
        await asyncio.sleep(0.02)
        assert pair.heard == [b"1"]
        assert pair.gone == []
        assert pair.right.send(b"dropped")

    run(closes)


async def test_a_limit_that_no_frame_can_tell():
    left, right = pair()
    with left, right, pytest.raises(ValueError, match="at most 4294967295 bytes"):
        Wire(left, lambda _: None, lambda _: None, max_message_bytes=1 << 32)


def test_a_paused_wire_hears_nothing_and_slows_its_peer(run):
    async def paused(pair):
        pair.left.send(b"before")
        await until(lambda: pair.heard)
        pair.right.pause(True)
        pair.right.pause(True)
        for number in range(64):
            pair.left.send(b"%d" % number + bytes(100_000))
        await asyncio.sleep(0.05)
        assert pair.heard == [b"before"]
        assert not pair.left.written.is_set()
        pair.right.pause(False)
        await until(lambda: len(pair.heard) == 65)
        assert [data.rstrip(b"\0") for data in pair.heard[1:]] == [b"%d" % number for number in range(64)]

    run(paused)


def test_a_listener_may_pause_at_any_message(run):
    async def paused(pair):
        hear = pair.hear
        pair.hear = lambda data: (hear(data), pair.right.pause(True))
        pair.right._heard = lambda data: pair.hear(data)
        for number in range(20):
            pair.left.send(b"%d" % number)
        for count in range(1, 21):
            await until(lambda count=count: len(pair.heard) == count)
            await asyncio.sleep(0.002)
            assert len(pair.heard) == count
            pair.right.pause(False)

    run(paused)


def test_the_end_of_a_paused_peer_is_told_after_what_it_said(run):
    async def ended(pair):
        pair.right.pause(True)
        pair.left.send(b"last")
        pair.left.close()
        pair.right.peer_ended()
        await asyncio.sleep(0.02)
        assert (pair.heard, pair.gone) == ([], [])
        pair.right.pause(False)
        await until(lambda: pair.gone)
        assert pair.heard == [b"last"]

    run(ended)
