import pytest

from foreserve.errors import ConfigError
from foreserve.traces.own import open_own, parse
from foreserve.traces.reading import LineTrace, check, in_order
from foreserve.traces.row import TraceRow


def numbered(*arrivals):
    return [(line, TraceRow(arrival=float(at))) for line, at in enumerate(arrivals, 1)]


def ordered(rows, hold):
    late = []
    return [row.arrival for row in in_order(rows, lambda line, words: late.append((line, words)), hold)], late


def test_rows_that_are_a_little_late_find_their_place():
    assert ordered(numbered(2, 1, 4, 3, 5), hold=2) == ([1, 2, 3, 4, 5], [])


def test_a_row_that_is_too_late_is_told_with_its_line():
    rows, late = ordered(numbered(1, 2, 3, 4, 0.5, 5), hold=2)
    assert rows == [1, 2, 3, 4, 5]
    assert [line for line, _ in late] == [5]
    assert "over 2 rows before it (2 s)" in late[0][1]


def test_equal_times_keep_their_order():
    rows = [(n, TraceRow(arrival=1.0, input_tokens=n)) for n in range(50)]
    assert [row.input_tokens for row in in_order(rows, lambda *_: None, 7)] == list(range(50))


def write(tmp_path, *texts):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(texts) + "\n")
    return path


def test_bad_rows_are_errors_or_counted_each_time(tmp_path):
    path = write(tmp_path, '{"arrival": 1}', '{"arrival": -1}', "nothing", '{"arrival": 2}')
    with pytest.raises(ConfigError, match=r"t\.jsonl: line 2: `arrival` is -1"):
        list(LineTrace(path, parse))
    trace = LineTrace(path, parse, skip_bad=True)
    for _ in range(2):
        assert [row.arrival for row in trace] == [1, 2]
        assert trace.skipped == 2


def test_rows_far_out_of_order_are_an_error_or_counted_or_sorted(tmp_path):
    texts = [f'{{"arrival": {at}}}' for at in range(1, 10_003)]
    path = write(tmp_path, *texts, '{"arrival": 0.5}')
    with pytest.raises(ConfigError, match=r"line 10003: arrival 0\.5 s is earlier.*--sort"):
        list(LineTrace(path, parse))
    trace = LineTrace(path, parse, skip_bad=True)
    assert len(list(trace)) == 10_002
    assert trace.skipped == 1
    assert next(iter(LineTrace(path, parse, sort=True))).arrival == 0.5


def test_a_plain_file_tells_its_length_and_is_true_though_that_is_not_known(tmp_path):
    path = write(tmp_path, '{"arrival": 1}', '{"arrival": 2}')
    assert len(LineTrace(path, parse)) == 2
    assert len(LineTrace(path, parse, first_line=2)) == 1
    packed = LineTrace(tmp_path / "x.xz", parse)
    assert (len(packed), bool(packed)) == (0, True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"arrival": float("inf")}, "`arrival` is inf"),
        ({"arrival": float("nan")}, "`arrival` is nan"),
        ({"arrival": 0.0, "input_tokens": -1}, "`input_tokens` is -1"),
        ({"arrival": 0.0, "output_tokens": 10**10}, "`output_tokens` is 10000000000"),
        ({"arrival": 0.0, "most_tokens": 0}, "`most_tokens` is 0"),
        ({"arrival": 0.0, "deadline_s": 0.0}, r"`deadline_s` is 0\.0"),
        ({"arrival": 0.0, "seconds": float("nan")}, "`seconds` is nan"),
        ({"arrival": 0.0, "total_s": -0.1}, r"`total_s` is -0\.1"),
        ({"arrival": 0.0, "utility": float("inf")}, "`utility` is inf"),
    ],
)
def test_numbers_that_cannot_be_meant(values, says):
    with pytest.raises(ValueError, match=says):
        check(TraceRow(**values))


def test_a_line_that_is_no_utf8_is_malformed_like_any_other(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"arrival": 1}\n{"arrival": 2, "tenant": "\xff"}\n{"arrival": 3}\n')
    with pytest.raises(ConfigError, match=r"t.jsonl: line 2: not UTF-8"):
        list(open_own(path))
    trace = open_own(path, skip_bad=True)
    assert [row.arrival for row in trace] == [1.0, 3.0]
    assert trace.skipped == 1
