from __future__ import annotations

import pytest

from foreserve.simulation.survey import begun, survey
from foreserve.traces.row import TraceRow
from tests.simulation.traces import Rows


def row(arrival: float, **fields: object) -> TraceRow:
    return TraceRow(arrival=arrival, input_tokens=10, output_tokens=5, **fields)  # type: ignore[arg-type]


def test_a_trace_tells_its_length_and_services():
    seen = survey(Rows([row(0.0), row(2.0, service="code"), row(7.5)]))
    assert (seen.rows, seen.span_s, seen.services) == (3, 7.5, (None, "code"))
    assert seen.live is None
    assert seen.live_of == {}


def test_what_was_recorded_is_told_for_all_and_by_service():
    seen = survey(
        Rows(
            [
                row(0.0, service="chat", outcome="done", first_s=1.0, total_s=3.0),
                row(1.0, service="code", outcome="done", first_s=0.5, total_s=0.7),
                row(2.0, service="code", outcome="shed"),
            ]
        )
    )
    assert seen.live
    assert seen.live.outcomes == {"done": 2, "shed": 1, "expired": 0, "cancelled": 0, "failed": 0}
    assert (seen.live.good, seen.live.output_tokens, seen.live.ended_s) == (2, 10, 3.0)
    assert seen.live.tpot
    assert seen.live.tpot.max == 0.5  # (3 - 1) / (5 - 1)
    chat = seen.live_for("chat", only=False)
    assert chat
    assert chat.e2e
    assert (chat.requests, chat.e2e.p50) == (1, pytest.approx(3.0))
    assert seen.live_for("other", only=False) is None
    assert seen.live_for("chat", only=True) is seen.live


def test_the_course_is_by_arrival():
    seen = survey(Rows([row(at, outcome="done", first_s=at + 1, total_s=2 * at + 2) for at in range(10)]))
    assert seen.live
    course = seen.live.course
    assert len(course.e2e_p50) * course.width_s > 9
    assert [value for value in course.ttft_p99 if value is not None] == pytest.approx(range(1, 11), rel=0.01)


def test_progress_is_told_now_and_then():
    heard: list[int] = []
    survey(Rows([row(at / 100) for at in range(9000)]), heard.append)
    assert heard == [4096, 8192]


def test_a_trace_begins_with_its_first_request_where_that_comes_late():
    late = Rows([row(8 * 3600.0), row(8 * 3600.0 + 5.0)])
    trace, seen = begun(late)
    assert [each.arrival for each in trace] == [0.0, 5.0]
    assert (seen.rows, seen.first_s, seen.span_s) == (2, 0.0, 5.0)
    soon = Rows([row(60.0)])
    assert begun(soon)[0] is soon
