from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from foreserve.dispatch.journal import Journal
from foreserve.errors import ConfigError


def test_lines_are_written_in_order(tmp_path: Path):
    for threaded in (False, True):
        path = tmp_path / "new" / f"{threaded}.jsonl"
        journal = Journal(path, "the test's file", threaded=threaded)
        for n in range(5000):
            journal.put(b"%d" % n)
        journal.close()
        journal.close()
        assert path.read_bytes() == b"".join(b"%d\n" % n for n in range(5000))


def test_what_was_there_is_kept_beside_it(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    for words in (b"first", b"second"):
        journal = Journal(path, "the test's file", threaded=False)
        journal.put(words)
        journal.close()
    assert path.read_bytes() == b"second\n"
    assert path.with_name("j.jsonl.previous").read_bytes() == b"first\n"


@pytest.mark.parametrize("threaded", [False, True])
def test_it_ends_at_its_bound_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, threaded: bool):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "the test's file", threaded=threaded, most_bytes=100)
    for _ in range(1000):
        journal.put(b"123456789")
    journal.close()
    assert path.stat().st_size == 100
    assert len([one for one in caplog.records if "ends here" in one.message]) == 1


def test_a_full_buffer_ends_it_rather_than_leave_a_gap(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "the test's file", threaded=True, buffer=8)
    for n in range(1_000_000):
        journal.put(b"%d" % n)
        if journal.stopped:
            break
    assert "faster than they could be written" in journal.stopped
    journal.close()
    written = path.read_bytes().splitlines()
    assert written == [b"%d" % n for n in range(len(written))]


class Disk:
    """Takes some bytes at a time, has no room left once, in the middle of a line, and all the room there is later."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner
        self._left = 1003
        self.failed, self.go_on = threading.Event(), threading.Event()
        self.close = inner.close

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def write(self, lines: memoryview) -> int:
        if self.failed.is_set():
            return self._inner.write(lines)
        if not self._left:
            self.failed.set()
            assert self.go_on.wait(10.0)
            raise OSError(28, "No space left on device")
        taken = min(len(lines), self._left, 100)
        self._left -= taken
        return self._inner.write(lines[:taken])


@pytest.mark.parametrize("threaded", [False, True])
def test_nothing_comes_after_what_a_disk_did_not_take(
    tmp_path: Path, threaded: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    disks: list[Disk] = []

    def opened(path: Path, mode: str, buffering: int) -> Disk:
        disks.append(Disk(open(path, mode, buffering)))  # type: ignore[arg-type]  # noqa: SIM115
        return disks[0]

    path = tmp_path / "j.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        journal = Journal(path, "the test's file", threaded=threaded)
    if not threaded:
        disks[0].go_on.set()
    for n in range(200):
        journal.put(b"%09d" % n)
    assert disks[0].failed.wait(10.0)
    for n in range(200, 400):
        journal.put(b"%09d" % n)  # with a thread these are in the queue when it fails
    disks[0].go_on.set()
    journal.close()
    assert path.read_bytes() == b"".join(b"%09d\n" % n for n in range(100)) + b"000"
    assert "No space left" in journal.stopped
    assert len([one for one in caplog.records if "ends here" in one.message]) == 1


def test_a_file_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal(tmp_path / "a" / "b", "the test's file", threaded=False)


@pytest.mark.parametrize("threaded", [False, True])
def test_the_last_line_tells_why_it_ends(tmp_path: Path, threaded: bool):
    def written(name: str, most_bytes: int = 1 << 20, count: int = 9, buffer: int = 100) -> list[bytes]:
        path = tmp_path / name
        last = b"ended: %s"
        journal = Journal(
            path, "the test's file", threaded=threaded, most_bytes=most_bytes, buffer=buffer,
            last=lambda why: last % why.encode(),
        )  # fmt: skip
        for n in range(count):
            journal.put(b"%d" % n)
        if most_bytes < 100:  # before it is closed, which a server that is killed never does
            until = time.monotonic() + 10.0
            while last.partition(b"%")[0] not in path.read_bytes() and time.monotonic() < until:
                time.sleep(0.01)
        else:
            journal.close()
        found = path.read_bytes().splitlines()
        journal.close()
        journal.close()
        assert path.read_bytes().splitlines() == found
        return found

    plain = [b"%d" % n for n in range(9)]
    assert written("all") == [*plain, b"ended: closed"]
    assert written("bound", most_bytes=12) == [*plain[:6], b"ended: it is full: it may have 12 bytes"]
    if threaded:
        *lines, end = written("full", count=100_000, buffer=8)
        assert lines == [b"%d" % n for n in range(len(lines))]
        assert end == b"ended: lines came faster than they could be written"
