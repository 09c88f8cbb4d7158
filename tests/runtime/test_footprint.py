import mmap
import os
import sys
from pathlib import Path

import pytest

from foreserve.runtime.footprint import footprint, writable

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="told by Linux")

SIZE = 32 * 2**20


def test_what_is_shared_counts_by_its_share_and_what_is_private_whole(tmp_path):
    before = footprint()
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:  # no memory that was used before
        for at in range(0, SIZE, mmap.PAGESIZE):
            block[at] = 1
        after = footprint(os.getpid())
        assert after.private - before.private >= 0.95 * SIZE  # what else this process has may shrink meanwhile
    (tmp_path / "file").write_bytes(bytes(SIZE))
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        _touch(mapping)
        alone = footprint()
        gate, go = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            _touch(mapping)
            os.write(gate[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(gate[0], 1)
        together = footprint()
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
    for fd in (*gate, *go):
        os.close(fd)
    assert together.shared - alone.shared >= SIZE
    assert alone.pss - together.pss >= SIZE // 2


def _touch(mapping):
    return sum(mapping[:: mmap.PAGESIZE])


def test_of_a_process_that_is_gone_nothing_is_told():
    assert footprint(2**22 + 1) is None
    assert sys.platform == "linux"


def test_what_may_be_written_to_is_less_than_what_is_set_aside_for_it():
    told = writable()
    assert told is not None
    assert told.reserved > told.used > 0
