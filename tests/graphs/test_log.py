from pathlib import Path
from typing import Any

import pytest

from foreserve.graphs import log as log_
from foreserve.graphs.log import Entry, Log, LogBroken, files, read


def _entry(n: int) -> Entry:
    return Entry(n, float(n), (f"k{n}",), bytes(n))


def _written(folder: Path, count: int, **words: Any) -> None:
    made = Log(folder, 0, **words)
    for n in range(1, count + 1):
        made.append(_entry(n))
    made.close()


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    _written(tmp_path, 5)
    assert list(read(tmp_path, 0)) == [_entry(n) for n in range(1, 6)]
    assert [entry.sequence for entry in read(tmp_path, 3)] == [4, 5]


def test_a_log_cut_off_anywhere_gives_its_whole_entries(tmp_path: Path) -> None:
    """As a crash may leave it: every length of the file."""
    _written(tmp_path, 4)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    counts = []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        counts.append(len(list(read(tmp_path, 0))))
        # The next writer goes on behind what is whole.
        Log(tmp_path, counts[-1]).close()
        again = Log(tmp_path, counts[-1])
        again.append(_entry(counts[-1] + 1))
        again.close()
        assert [entry.sequence for entry in read(tmp_path, 0)] == list(range(1, counts[-1] + 2))
        for each in files(tmp_path)[1:]:
            each.unlink()
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}


def _flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(bytes(data))


def _starts(path: Path) -> list[int]:
    """The first byte of each entry, and the end."""
    return [len(log_.MAGIC), *(end for _, end in log_.entries(path))]


def test_a_byte_that_changed_before_a_whole_entry_is_refused_with_its_place(tmp_path: Path) -> None:
    """It was on the disk before the entry behind it was written, so no crash made it."""
    _written(tmp_path, 4)
    path = files(tmp_path)[0]
    starts = _starts(path)
    for at in range(len(log_.MAGIC), starts[-2]):
        _flipped(path, at)
        broken = sum(start <= at for start in starts)
        with pytest.raises(LogBroken) as told:
            list(read(tmp_path, 0))
        assert str(path) in str(told.value)
        assert f"the entry at byte {starts[broken - 1]} does not read, but entry" in str(told.value)
        assert f"cut it to {starts[broken - 1]} bytes" in str(told.value)
        _flipped(path, at)
    # As the message says.
    path.write_bytes(path.read_bytes()[: starts[2]])
    assert [entry.sequence for entry in read(tmp_path, 0)] == [1, 2]


def test_a_byte_that_changed_in_the_last_entry_ends_the_log_unless_it_was_acknowledged(tmp_path: Path) -> None:
    _written(tmp_path, 4)
    path = files(tmp_path)[0]
    _flipped(path, -1)
    assert [entry.sequence for entry in read(tmp_path, 0)] == [1, 2, 3]
    made = Log(tmp_path, 3)
    made.acknowledge(4)
    made.close()
    with pytest.raises(LogBroken, match="reads up to entry 3, but 4 was acknowledged"):
        list(read(tmp_path, 0))
    # One that was acknowledged before it was on the disk may be lost.
    made = Log(tmp_path, 3)
    made.acknowledge(4, durable=False)
    made.close()
    assert [entry.sequence for entry in read(tmp_path, 0)] == [1, 2, 3]
    assert log_.acknowledged(tmp_path) == (4, 3)


def test_what_is_not_acknowledged_is_not_read_by_those_that_follow(tmp_path: Path) -> None:
    _written(tmp_path, 4)
    assert [entry.sequence for entry in read(tmp_path, 0, most=2)] == [1, 2]
    assert log_.acknowledged(tmp_path / "none") == (0, 0)
    (tmp_path / log_.ACKNOWLEDGED).write_bytes(b"12345678123")
    assert log_.acknowledged(tmp_path) == (0, 0)


def test_a_hole_between_files_is_an_error(tmp_path: Path) -> None:
    _written(tmp_path, 6, file_bytes=0)
    assert len(files(tmp_path)) == 6
    assert len(list(read(tmp_path, 0))) == 6
    data = bytearray(files(tmp_path)[2].read_bytes())
    data[-1] ^= 255
    files(tmp_path)[2].write_bytes(bytes(data))
    with pytest.raises(LogBroken, match="does not read and is not the last one"):
        list(read(tmp_path, 0))
    files(tmp_path)[2].unlink()
    with pytest.raises(LogBroken, match="entry 4 follows 2"):
        list(read(tmp_path, 0))
    (tmp_path / "00000000000000000001.log").write_bytes(b"something else altogether")
    with pytest.raises(LogBroken, match="is no log of a graph"):
        list(read(tmp_path, 0))


def test_half_an_entry_is_taken_back_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Log(tmp_path, 0)
    made.append(_entry(1))

    def full(fd: int, data: bytes) -> None:
        log_.os.write(fd, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log_, "_write", full)
        with pytest.raises(OSError, match="No space"):
            made.append(_entry(2))
    made.append(_entry(2))
    made.close()
    assert [entry.sequence for entry in read(tmp_path, 0)] == [1, 2]


def test_after_a_failed_sync_nothing_more_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Log(tmp_path, 0)
    made.append(_entry(1))

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(log_.os, "fsync", fails)
        with pytest.raises(LogBroken, match="could not be brought to the disk"):
            made.sync()
    with pytest.raises(LogBroken, match="takes nothing more"):
        made.append(_entry(2))
