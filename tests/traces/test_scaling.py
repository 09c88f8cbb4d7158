import math

import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.traces.own import open_own
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.scaling import between, kept, limited, scaled, sped
from foreserve.traces.servegen import open_servegen
from tests.traces import servegen as small


class Rows:
    def __init__(self, rows, epoch=0.0):
        self.header = Header(name="mine", epoch=epoch)
        self.skipped = 0
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


def rows_at(*times):
    return [TraceRow(arrival=float(at), input_tokens=n, prefix=(n, n + 1)) for n, at in enumerate(times)]


def arrivals(trace):
    return [row.arrival for row in trace]


def test_a_part_begins_at_0_and_keeps_its_calendar():
    part = between(Rows(rows_at(1, 2, 3, 4), epoch=1e9), 2.0, 4.0)
    assert arrivals(part) == [0.0, 1.0]
    assert part.header.epoch == 1e9 + 2.0
    assert between(Rows(rows_at(1)), 0.5).header.epoch == 0.0  # not known stays not known


def test_faster_shrinks_gaps_alone():
    rows = [TraceRow(arrival=4.0, deadline_s=3.0, total_s=2.0)]
    assert list(sped(Rows(rows), 2.0)) == [TraceRow(arrival=2.0, deadline_s=3.0, total_s=2.0)]


def test_the_first_rows_alone():
    trace = limited(Rows(rows_at(1, 2, 3)), 2)
    assert arrivals(trace) == arrivals(trace) == [1.0, 2.0]
    assert len(trace) == 2


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.5, 2.0, 3.7])
def test_more_or_fewer_keep_order_shape_and_seed(rate):
    rng = np.random.default_rng(0)
    times = np.sort(np.concatenate([rng.uniform(0, 100, 2000), rng.uniform(100, 200, 8000)]))
    source = Rows(rows_at(*times))
    found = arrivals(kept(source, rate, seed=3))
    assert found == sorted(found)
    assert found == arrivals(kept(source, rate, seed=3)) != arrivals(kept(source, rate, seed=4))
    assert len(found) == pytest.approx(10_000 * rate, rel=0.1)
    assert sum(at < 100 for at in found) / len(found) == pytest.approx(0.2, abs=0.03)
    assert len(kept(source, rate)) == round(10_000 * rate)


def test_copies_come_in_the_gap_that_follows_and_share_prefixes_among_themselves():
    source = Rows([
        TraceRow(arrival=0.0, input_tokens=5, tenant="a", prefix=(1, 2)),
        TraceRow(arrival=8.0, input_tokens=6, prefix=(1, 3)),
    ])  # fmt: skip
    found = list(kept(source, 3.0))
    assert [row.input_tokens for row in found] == [5, 5, 5, 6, 6, 6]
    assert [row.tenant for row in found[:3]] == ["a"] * 3
    assert 0.0 == found[0].arrival <= found[1].arrival <= found[2].arrival <= 8.0 == found[3].arrival
    assert found[5].arrival <= 16.0
    first = [row.prefix[0] for row in found]
    assert first[:3] == first[3:]  # each population's own begins alike
    assert len(set(first)) == 3
    assert len({row.prefix[1] for row in found}) == 6


def test_all_of_it_together_and_what_was_skipped(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"arrival": {at}}}\n' for at in range(10)) + "bad\n")
    trace = scaled(open_own(path, skip_bad=True), start=2.0, end=8.0, speed=2.0, rate=2.0, limit=5, seed=1)
    found = arrivals(trace)
    assert len(found) == 5
    assert found[0] == 0.0
    assert max(found) <= 1.5
    whole = scaled(open_own(path, skip_bad=True), speed=2.0)
    assert len(arrivals(whole)) == 10
    assert whole.skipped == 1
    same = open_own(path)
    assert scaled(same) is same


def test_what_is_drawn_is_drawn_as_it_is_wanted(tmp_path):
    trace = open_servegen(small.write(tmp_path), seed=2)
    found = scaled(trace, start=600.0, end=1200.0, rate=0.5)
    assert list(found) == list(trace.between(600.0, 1200.0).kept(0.5))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: between(t, 5.0, 5.0), "from 5 s to 5 s"),
        (lambda t: between(t, -1.0), "from -1 s to inf s"),
        (lambda t: between(t, math.nan), "from nan s"),
        (lambda t: sped(t, 0.0), r"speed is 0\.0"),
        (lambda t: kept(t, 0.0), r"rate is 0\.0"),
        (lambda t: kept(t, math.inf), "rate is inf"),
        (lambda t: limited(t, 0), "limit is 0"),
        (lambda t: list(kept(t, 0.5, seed=-1)), "seed is -1"),
    ],
)
def test_what_cannot_be(make, says):
    with pytest.raises(ConfigError, match=says):
        make(Rows(rows_at(1, 2)))
