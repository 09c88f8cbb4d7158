import pytest

from foreserve.errors import ConfigError
from foreserve.traces.open import open_trace
from foreserve.traces.own import open_own, recognise, write_trace
from foreserve.traces.row import Header, TraceRow

ROWS = [
    TraceRow(arrival=0.5, input_tokens=3, output_tokens=7, tenant="a", deadline_s=2.0, prefix=(1, 2**63), app="x"),
    TraceRow(arrival=0.75, seconds=0.25, service="rank", outcome="done", first_s=0.1, total_s=0.3, utility=2.0),
    TraceRow(arrival=9.0, input_tokens=1, most_tokens=64, text="how?", answer="so"),
]


class Rows:
    header = Header(name="mine", epoch=1.5e9, block_tokens=32)
    skipped = 0

    def __iter__(self):
        return iter(ROWS)

    def __len__(self):
        return len(ROWS)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.xz", "t.jsonl.gz"])
def test_what_is_written_is_read_back_the_same(tmp_path, name):
    assert write_trace(tmp_path / name, Rows()) == 3
    trace = open_own(tmp_path / name)
    assert trace.header == Rows.header
    assert list(trace) == ROWS


def test_a_header_may_be_missing(tmp_path):
    path = tmp_path / "busy.jsonl"
    path.write_text('\n{"arrival": 1}\n')
    trace = open_own(path)
    assert trace.header == Header(name="busy")
    assert [row.arrival for row in trace] == [1.0]


def test_the_earlier_names_of_lengths_are_understood(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrival": 1, "prompt_tokens": 5, "output_tokens": 6}\n{"arrival": 2, "prompt_tokens": null}\n')
    assert [(row.input_tokens, row.output_tokens) for row in open_own(path)] == [(5, 6), (0, 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"arrival": 1, "inputtokens": 5}', "line 1: unknown field 'inputtokens'; did you mean 'input_tokens'"),
        ('{"arrival": "1"}', "line 1: Expected `float`, got `str`"),
        ('{"input_tokens": 1}', "line 1: Object missing required field `arrival`"),
        ('{"arrival": 1', "line 1: "),
        ('{"arrival": 1700000000.5}', "line 1: `arrival` is 1700000000.5: .* since 1970: use `foreserve trace import`"),
        ('{"foreserve_trace": 2}', "line 1: the header: Invalid value 2"),
        ('{"foreserve_trace": 1, "epoch": "x"}', "line 1: the header: "),
    ],
)
def test_a_malformed_line_says_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "t.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=says):
        list(open_own(path))


def test_it_is_known_by_its_first_line():
    assert recognise('{"foreserve_trace": 1}')
    assert recognise('{"arrival": 3}')
    assert not recognise('{"timestamp": 3}')
    assert not recognise("arrival")


@pytest.mark.parametrize("field", ['"block_tokens": 0', '"block_tokens": 65537', '"lost": -1'])
def test_a_header_that_cannot_be_meant_is_refused_with_its_line(tmp_path, field):
    path = tmp_path / "t.jsonl"
    path.write_text(f'\n{{"foreserve_trace": 1, {field}}}\n{{"arrival": 1}}\n')
    with pytest.raises(ConfigError, match=rf"t.jsonl: line 2: the header: `{field.split(chr(34))[1]}` is "):
        open_own(path)


def test_a_broken_first_line_is_an_error_of_that_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrival":NaN,"input_tokens":3}\n')
    with pytest.raises(ConfigError, match="line 1: JSON is malformed"):
        list(open_trace(path))


def test_a_time_since_1970_among_the_rows_is_told_with_its_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrival": 0.1}\n{"arrival": 1700000000}\n')
    with pytest.raises(ConfigError, match=r"line 2: `arrival` is 1700000000: .*`foreserve trace import`"):
        list(open_own(path))
