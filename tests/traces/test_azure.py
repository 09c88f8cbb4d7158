import pytest

from foreserve.errors import ConfigError
from foreserve.traces.azure import open_azure

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(tmp_path, text, **options):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + text)
    return open_azure(path, **options)


def test_the_epoch_is_the_earliest_time_and_arrival_0(tmp_path):
    found = trace(tmp_path, "2023-11-16 18:15:48.5,1,2\n2023-11-16 18:15:46.5,3,4\n")
    assert found.header.epoch == 1700158546.5
    assert [(row.arrival, row.input_tokens) for row in found] == [(0.0, 3), (2.0, 1)]


def test_zones_are_heeded_and_none_is_utc(tmp_path):
    found = trace(tmp_path, "2024-05-10 02:00:00+02:00,1,2\n2024-05-10 00:00:01,1,2\n")
    assert [row.arrival for row in found] == [0.0, 1.0]


def test_seconds_are_no_calendar(tmp_path):
    found = trace(tmp_path, "5,1,2\n7.5,1,2\n")
    assert found.header.epoch == 0.0
    assert [row.arrival for row in found] == [0.0, 2.5]


def test_a_bad_row_is_named_or_counted(tmp_path):
    rows = "2023-11-16 18:15:46,1,2\nyesterday,1,2\n2023-11-16 18:15:47,1.5,2\n2023-11-16 18:15:48,1\n"
    with pytest.raises(ConfigError, match="line 3: "):
        trace(tmp_path, rows)
    found = trace(tmp_path, rows, skip_bad=True)
    assert len(list(found)) == 1
    assert found.skipped == 3


def test_no_rows_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no arrivals"):
        trace(tmp_path, "")


def test_any_order_with_sort(tmp_path):
    rows = "".join(f"{at},1,2\n" for at in range(20_000, 0, -1))
    with pytest.raises(ConfigError, match="earlier than the first 10000 rows"):
        list(trace(tmp_path, rows))
    found = [row.arrival for row in trace(tmp_path, rows, sort=True)]
    assert found == [float(at) for at in range(20_000)]
