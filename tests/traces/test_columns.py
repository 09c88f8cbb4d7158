import gzip
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from foreserve.errors import ConfigError
from foreserve.traces import columns
from foreserve.traces.columns import empty, find, number, records, time, whole

UTC_ZONE = ZoneInfo("UTC")
AT = datetime(2025, 11, 16, 18, 15, 46, 500_000, UTC).timestamp()


def read(tmp_path, text):
    path = tmp_path / "log"
    path.write_text(text)
    return list(records(path))


def test_csv_with_quotes_and_line_breaks_in_a_cell(tmp_path):
    found = read(tmp_path, 'a,b\n1,"x, ""y""\nz"\n3,4\n5\n')
    assert found[:2] == [(3, {"a": "1", "b": 'x, "y"\nz'}), (4, {"a": "3", "b": "4"})]
    assert found[2][0] == 5
    assert "1 columns; the first line has 2" in str(found[2][1])


def test_jsonl_and_an_array(tmp_path):
    assert read(tmp_path, '{"a": 1}\n\n{"a": 2}\n') == [(1, {"a": 1}), (3, {"a": 2})]
    assert read(tmp_path, ' [{"a": 1},\n {"a": 2}]') == [(1, {"a": 1}), (2, {"a": 2})]
    assert isinstance(read(tmp_path, '{"a": 1}\n{"a"\n')[1][1], Exception)
    with pytest.raises(ConfigError, match="not a JSON array of objects"):
        read(tmp_path, "[1, 2]")
    with pytest.raises(ConfigError, match="the file is empty"):
        read(tmp_path, "\n")


def test_dotted_paths_go_into_objects_lists_and_json_in_text():
    record = {"u": {"in": 5}, "l": [{"t": 7}], "j": '{"deep": {"x": 1}}', "a.b": 2, "plain": "text"}
    assert [find(record, name) for name in ("u.in", "l.0.t", "j.deep.x", "a.b")] == [5, 7, 1, 2]
    assert [find(record, name) for name in ("u.out", "l.3", "l.x", "j.no", "plain.x", "none")] == [None] * 6


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("2025-11-16T18:15:46.5Z", "auto"),
        ("2025-11-16 18:15:46.500000+00", "auto"),
        ("2025-11-16 19:15:46.5+01:00", "iso"),
        ("2025-11-16 18:15:46.5 UTC", "auto"),
        (AT, "auto"),
        (str(AT), "auto"),
        (int(AT * 1e3), "auto"),
        (int(AT * 1e6), "auto"),
        (int(AT * 1e9), "auto"),
        (AT * 1e3, "ms"),
    ],
)
def test_times_in_all_ways(value, form):
    assert time(value, form, UTC_ZONE) == pytest.approx(AT, abs=1e-5)


def test_dates_without_a_zone_are_in_the_one_that_is_given():
    assert time("2025-11-16 19:15:46.5", "auto", ZoneInfo("Europe/Berlin")) == AT
    assert time("2025-07-16 00:00:00", "auto", ZoneInfo("Europe/Berlin")) == time("2025-07-15T22:00Z", "auto", UTC_ZONE)


def test_small_numbers_are_seconds():
    assert time("12.5", "auto", UTC_ZONE) == 12.5


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda: number(True), "True is no number"),
        (lambda: number("1e999"), "not finite"),
        (lambda: number([]), "is no number"),
        (lambda: whole("1.5"), "no whole number"),
        (lambda: time("soon", "auto", UTC_ZONE), "'soon' is no time; expected ISO 8601"),
        (lambda: time(None, "iso", UTC_ZONE), "None is no time"),
        (lambda: time("x", "ms", UTC_ZONE), "'x' is no number"),
    ],
)
def test_what_is_none_says_so(what, says):
    with pytest.raises(ValueError, match=says):
        what()


def test_what_counts_as_empty():
    assert all(empty(value) for value in (None, "", " ", "NULL", "None", "NaN", "\\N"))
    assert not any(empty(value) for value in (0, "0", False, "x"))


def test_a_bad_byte_or_cell_costs_its_own_row(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_bytes(b"a,b\n1,2\n\xff,4\n5,\xc3\xa9\n" + b"6," + b"x" * 3000 + b"\n7,8\n")
    monkeypatch.setattr(columns, "MAX_LINE_BYTES", 2000)
    found = list(records(path))
    assert [number for number, _ in found] == [2, 3, 4, 5, 6]
    assert [record for _, record in found if isinstance(record, dict)] == [
        {"a": "1", "b": "2"},
        {"a": "5", "b": "é"},
        {"a": "7", "b": "8"},
    ]
    assert [str(error)[:9] for _, error in found if isinstance(error, Exception)] == ["not UTF-8", "field lar"]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n')
    assert [(number, isinstance(record, dict)) for number, record in records(path)] == [
        (1, True),
        (2, False),
        (3, True),
    ]


@pytest.mark.parametrize("text", [b"a,b\n" + b"1,2\n" * 9999, b'{"a": 1}\n' * 9999, b'[{"a": 1}' + b',{"a": 1}' * 9999])
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, text):
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(text)[:-12])
    with pytest.raises(ConfigError, match=r"log.gz: cannot be read: Compressed file ended"):
        list(records(path))
    damaged = bytearray(gzip.compress(text))
    damaged[12] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"log.gz: (cannot be read|no rows in it|not a JSON)"):
        list(records(path))
