"""A packet that does not arrive whole, or whose descriptors do not, is the end of what can be trusted."""

import os
import resource
import socket
import sys

import pytest

from foreserve.runtime import forking, memory_messages
from foreserve.runtime.packets import receive_packet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets that keep packets apart")


@pytest.fixture
def pair():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def pipes():
    ends = [end for _ in range(4) for end in os.pipe()]
    yield ends
    for end in ends:
        os.close(end)


def opened():
    return len(os.listdir("/proc/self/fd"))


def test_a_packet_comes_with_its_descriptors(pair, pipes):
    socket.send_fds(pair[0], [b"x"], pipes[:2])
    data, fds = receive_packet(pair[1], 100, 2)
    assert (data, len(fds)) == (b"x", 2)
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_packet_that_is_too_long_is_refused_and_nothing_stays_open(pair, pipes):
    before = opened()
    socket.send_fds(pair[0], [b"x" * 200], pipes[:1])
    with pytest.raises(ConnectionError, match="longer than 100 bytes"):
        receive_packet(pair[1], 100, 2)
    assert opened() == before


def test_too_many_descriptors_are_told_and_none_stays_open(pair, pipes):
    before = opened()
    socket.send_fds(pair[0], [b"x"], pipes)
    assert receive_packet(pair[1], 100, 2) == (b"x", None)
    assert opened() == before


def test_descriptors_that_this_process_has_no_room_for_are_missed_by_both_kinds_of_lines(pair, pipes):
    forking.send(pair[0], forking.Fork(1, {}, ("0",)), pipes[:3])
    memory_messages.send(pair[0], memory_messages.Given(1, "k", 1.0), pipes[:1])
    before = opened()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = [os.dup(0) for _ in range(highest)]  # no number below the limit is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    try:
        message, fds = forking.receive(pair[1], forking.to_forker)
        assert (message.id, fds) == (1, [])
        with pytest.raises(OSError, match="descriptor"):
            memory_messages.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert opened() == before


def test_a_message_that_is_none_leaves_no_descriptor_open(pair, pipes):
    import msgspec

    before = opened()
    socket.send_fds(pair[0], [b"\xc1"], pipes[:3])
    with pytest.raises(msgspec.DecodeError):
        forking.receive(pair[1], forking.to_forker)
    assert opened() == before
