import gzip
import lzma

import pytest

from foreserve.errors import ConfigError
from foreserve.traces.files import MAX_LINE_BYTES, count_lines, lines, writing


def test_lines_have_their_numbers_and_blank_ones_are_left_out(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two \nthree")
    assert list(lines(path)) == [(1, "one"), (3, "two"), (4, "three")]
    assert list(lines(path, 3)) == [(3, "two"), (4, "three")]
    assert count_lines(path) == 4


@pytest.mark.parametrize(("suffix", "unpack"), [("", bytes), (".xz", lzma.decompress), (".gz", gzip.decompress)])
def test_a_file_is_packed_as_its_name_says_and_read_back(tmp_path, suffix, unpack):
    path = tmp_path / f"a{suffix}"
    with writing(path) as file:
        file.write(b"one\ntwo\n")
        assert not path.exists()
    assert unpack(path.read_bytes()) == b"one\ntwo\n"
    assert [text for _, text in lines(path)] == ["one", "two"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_broken_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def broken():
        with writing(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_or_written_is_said_with_its_place(tmp_path):
    (tmp_path / "long").write_bytes(b"ok\n" + b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(ConfigError, match="long: line 2: longer than"):
        list(lines(tmp_path / "long"))
    (tmp_path / "binary").write_bytes(b"ok\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="binary: line 2: not UTF-8"):
        list(lines(tmp_path / "binary"))
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"row\n" * 10_000)[:-20])
    with pytest.raises(ConfigError, match=r"cut\.xz: cannot be read"):
        list(lines(tmp_path / "cut.xz"))
    with pytest.raises(ConfigError, match="cannot be written"), writing(tmp_path / "no" / "folder"):
        pass
