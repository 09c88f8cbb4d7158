"""Bounds on memory and giving it back, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from foreserve.runtime.limits import LOOKS, TRIM_S, Upkeep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and bounds what is written to")

MB = 1 << 20


def run(code: str) -> str:
    """What a new process prints that runs `code` with an `Upkeep`."""
    before = "import mmap, threading\nfrom foreserve.runtime.limits import *\nMB = 1 << 20\nupkeep = Upkeep()\n"
    done = subprocess.run(
        [sys.executable, "-c", before + textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_leak_ends_as_an_error_in_its_call_and_others_go_on():
    assert (
        run("""
        upkeep.started(200 * MB)
        def leak():
            kept = []
            while True:
                kept.append(bytearray(b"x") * MB)
        try:
            leak()
        except MemoryError:
            print("refused")
        print(len(bytearray(150 * MB)) // MB)
        """)
        == "refused\n150"
    )


def test_many_small_objects_are_bounded_too():
    assert (
        run("""
        upkeep.started(100 * MB)
        def leak():
            kept = []
            while True:
                kept.append(object())
        try:
            leak()
        except MemoryError:
            print("refused")
        print(len([object() for _ in range(MB)]) // MB)
        """)
        == "refused\n1"
    )


def test_what_was_there_and_read_only_mappings_do_not_count(tmp_path):
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        file.truncate(400 * MB)
    assert (
        run(f"""
        before = bytearray(300 * MB)
        upkeep.started(100 * MB)
        with open({str(weights)!r}, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        print(sum(mapped[::4096]), len(bytearray(90 * MB)) // MB, [upkeep.look(False, n) for n in range(5)])
        """)
        == "0 90 [None, None, None, None, None]"
    )


def test_threads_that_start_later_have_room():
    assert (
        run("""
        upkeep.started(8 * MB)
        ends = [threading.Event() for _ in range(6)]
        for end in ends:
            threading.Thread(target=end.wait).start()
        [end.set() for end in ends]
        print("ran")
        """)
        == "ran"
    )


def test_what_the_kernel_does_not_bound_is_watched():
    assert (
        run("""
        upkeep.started(50 * MB, raises=False)
        kept = bytearray(b"x") * (80 * MB)
        said = [upkeep.look(False, n) for n in range(LOOKS)]
        print(said[:-1] == [None] * (LOOKS - 1), said[-1])
        """)
        == "True it holds 80 MiB more than when it was ready; its `memory_bytes` are 52428800 (50 MiB)"
    )


def test_what_is_held_for_a_moment_is_not_taken_for_a_leak():
    assert (
        run("""
        upkeep.started(50 * MB, raises=False)
        for _ in range(3):
            kept = bytearray(b"x") * (80 * MB)
            assert [upkeep.look(False, n) for n in range(LOOKS - 1)] == [None] * (LOOKS - 1)
            del kept
            assert upkeep.look(False, 9.0) is None
        print("goes on")
        """)
        == "goes on"
    )


def test_memory_is_given_back_once_it_has_been_idle():
    """A block that still is in use keeps the free ones below it from being given back, but for a trim."""
    freed, trimmed = run("""
        import ctypes
        from foreserve.runtime.footprint import footprint
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        blocks = [libc.malloc(100_000) for _ in range(1000)]
        for block in blocks:
            ctypes.memset(block, 1, 100_000)
        for block in blocks[:-1]:
            libc.free(ctypes.c_void_p(block))
        upkeep.look(True, 0.0)
        upkeep.look(True, TRIM_S - 0.1)
        freed = footprint().private
        upkeep.look(True, TRIM_S)
        print(freed // MB, footprint().private // MB)
        """).split()
    assert int(freed) - int(trimmed) > 80


def test_it_is_given_back_once_in_each_stretch_of_idleness(monkeypatch):
    trims: list[float] = []
    upkeep = Upkeep()
    for now, idle in [
        (0, True),
        (TRIM_S, True),
        (50, True),
        (51, False),
        (52, True),
        (53, True),
        (60, True),
        (99, True),
    ]:
        monkeypatch.setattr("foreserve.runtime.limits.trim", lambda now=now: trims.append(now))
        assert upkeep.look(idle, now) is None
    assert trims == [TRIM_S, 60]
    assert LOOKS > 1
