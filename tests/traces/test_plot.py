import re

import pytest

from foreserve.errors import ConfigError
from foreserve.traces.plot import page_of, plot
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.statistics import statistics
from tests.traces.test_scaling import Rows


def found(**more):
    trace = Rows(
        [TraceRow(arrival=float(n), input_tokens=n, output_tokens=1, tenant="a<b", **more) for n in range(400)]
    )
    trace.header = Header(name="<script>alert(1)</script>")
    return statistics(trace)


def test_the_page_loads_nothing_and_runs_nothing_of_the_traces(tmp_path):
    plot(found(), tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", page)
    assert "<script>alert" not in page
    assert "requests a second" in page
    assert "<td>input tokens</td><td>400</td>" in page
    assert "Latency" not in page


def test_latencies_are_shown_where_they_were_recorded():
    page = page_of(found(first_s=0.1, total_s=0.5, outcome="done"))
    assert "Latency as recorded" in page
    assert "until the first token" in page


def test_an_empty_trace_and_a_place_that_is_none(tmp_path):
    empty = statistics(Rows([]))
    plot(empty, tmp_path / "e.html")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot(empty, tmp_path / "no" / "e.html")
