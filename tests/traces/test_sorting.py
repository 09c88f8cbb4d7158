import pytest

from foreserve.errors import ConfigError
from foreserve.traces import sorting
from foreserve.traces.row import TraceRow


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 37])
def test_any_order_becomes_that_of_arrival_however_many_blocks(count):
    rows = [TraceRow(arrival=float(n * 7 % 5), input_tokens=n, prefix=(n, 2**63)) for n in range(count)]
    assert list(sorting.in_any_order(rows, block=10)) == sorted(rows, key=lambda row: row.arrival)


def test_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(sorting, "MOST_BLOCKS", 2)
    rows = [TraceRow(arrival=0.0)] * 5
    with pytest.raises(ConfigError, match="more than 4 rows"):
        list(sorting.in_any_order(rows, block=2))
