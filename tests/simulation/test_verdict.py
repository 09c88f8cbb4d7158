from __future__ import annotations

import msgspec
import pytest

from foreserve.simulation.figures import Result
from foreserve.simulation.study import simulate
from foreserve.simulation.summary import summary
from foreserve.simulation.survey import Survey, survey
from foreserve.simulation.verdict import against_live
from tests.simulation.traces import Rows, chat, poisson, profiles


def played(times: float) -> tuple[Result, Survey]:
    """A run and a recording whose latencies are so many times its median."""
    trace = poisson(60, 4.0)
    result = simulate(chat(), profiles(), trace)
    assert result.total.e2e
    live = Rows(
        [
            msgspec.structs.replace(row, outcome="done", first_s=0.1, total_s=times * result.total.e2e.p50)
            for row in trace.rows
        ]
    )
    return result, survey(live)


@pytest.mark.parametrize(
    ("times", "far", "words"),
    [(2.0, True, "50 % below live: measure the profile"), (0.5, True, "100 % above live"), (1.1, False, "within ")],
)
def test_a_median_far_from_the_recordings_is_told(times: float, far: bool, words: str):
    result, seen = played(times)
    ((line, told),) = against_live([result], seen)
    assert told is far
    assert words in line


def test_nothing_is_judged_without_a_recording():
    result, _ = played(1.0)
    assert against_live([result], survey(poisson(60, 4.0))) == []


def test_the_live_column_has_rates_and_differences():
    result, seen = played(2.0)
    rows = {row.label: row for row in summary([result], seen.live)}
    assert rows["end-to-end p50"].off == pytest.approx(-0.5, abs=0.02)
    for label in ("goodput (done in time), requests/s", "output tokens/s", "prompt tokens/s"):
        assert rows[label].live
        assert rows[label].off == pytest.approx(0.0, abs=0.2)
