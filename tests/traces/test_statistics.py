import numpy as np
import pytest

from foreserve.simulation.survey import survey
from foreserve.traces.row import TraceRow
from foreserve.traces.statistics import statistics
from tests.traces.test_scaling import Rows


def test_of_a_poisson_process():
    times = np.cumsum(np.random.default_rng(1).exponential(0.1, 20_000))
    found = statistics(Rows([TraceRow(arrival=float(at), input_tokens=9, output_tokens=4) for at in times]))
    assert found.requests == 20_000
    assert found.rate == pytest.approx(10, rel=0.03)
    assert found.gap_cv == pytest.approx(1.0, rel=0.05)
    assert 1.0 < found.peak_minute < 1.3
    assert found.duration_s == pytest.approx(times[-1] - times[0])
    assert (found.input_tokens.mean, found.output_tokens.p99) == (9, 4)
    assert found.prefix_seen is None
    assert sum(found.series.requests) == 20_000


def test_a_burst_shows():
    calm = [TraceRow(arrival=float(at)) for at in range(0, 3600, 10)]
    burst = [TraceRow(arrival=1800 + n / 100) for n in range(1000)]
    found = statistics(Rows(sorted(calm + burst, key=lambda row: row.arrival)))
    assert found.gap_cv > 1.5
    assert found.peak_minute == pytest.approx(1006 / (1359 / 3590 * 60))


def test_tenants_outcomes_latencies_and_prefixes():
    rows = [
        TraceRow(arrival=0.0, input_tokens=64, tenant="a", service="chat", outcome="done", first_s=0.5, total_s=2.0,
                 prefix=(1, 2)),
        TraceRow(arrival=1.0, input_tokens=64, tenant="b", service="chat", outcome="shed", total_s=0.0, prefix=(1, 3)),
        TraceRow(arrival=2.0, seconds=0.25, tenant="b", service="rank", outcome="done", first_s=0.25, total_s=0.25),
    ]  # fmt: skip
    trace = Rows(rows)
    trace.header = type(trace.header)(name="live", epoch=5.0, block_tokens=32)
    found = statistics(trace)
    assert found.tenants == {"b": 2, "a": 1}
    assert found.services == {"chat": 2, "rank": 1}
    assert found.outcomes == {"done": 2, "shed": 1}
    assert (found.input_tokens.count, found.seconds.count) == (2, 1)
    assert (found.first_s.count, found.first_s.most, found.total_s.most) == (2, 0.5, 2.0)
    assert (found.prefix_blocks, found.prefix_seen) == (4, 0.25)
    assert found.prefix_seen_tokens == 32 / 128


@pytest.mark.parametrize("rows", [[], [TraceRow(arrival=3.0)], [TraceRow(arrival=3.0)] * 3])
def test_where_there_is_nothing_to_tell_from(rows):
    found = statistics(Rows(rows))
    assert (found.requests, found.rate, found.gap_cv, found.peak_minute) == (len(rows), None, None, None)


def test_latencies_are_of_what_was_done_as_in_a_simulation():
    rows = Rows([
        TraceRow(arrival=0.0, outcome="done", first_s=1.0, total_s=2.0),
        TraceRow(arrival=1.0, outcome="shed", total_s=0.001),
        TraceRow(arrival=2.0, outcome="expired", first_s=30.0, total_s=60.0),
    ])  # fmt: skip
    found = statistics(rows)
    assert found.first_s is not None
    assert found.total_s is not None
    assert (found.first_s.count, found.first_s.most, found.total_s.most) == (1, 1.0, 2.0)
    live = survey(rows).live
    assert live is not None
    assert live.e2e is not None
    assert live.e2e.n == 1
