from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from foreserve.simulation.chart import COLOURS, KINDS, LIVE, QUIET
from foreserve.simulation.figures import Result
from foreserve.simulation.report import page
from foreserve.simulation.study import simulate
from foreserve.simulation.survey import survey
from tests.simulation.traces import Rows, chat, poisson, profiles


def run(trace: Rows, name: str, **settings: Any) -> Result:
    return simulate(chat(**settings), profiles(), trace, name=name)


@pytest.fixture(scope="module")
def trace() -> Rows:
    rows = poisson(300, 10.0, deadline_s=6.0).rows
    return Rows([msgspec.structs.replace(row, tenant="ann" if i % 3 else "bob") for i, row in enumerate(rows)])


@pytest.fixture(scope="module")
def told(trace: Rows) -> str:
    return page(trace, survey(trace), [run(trace, "one <b>", replicas=1), run(trace, "two", replicas=2)])


def charts(told: str) -> dict[str, dict[str, Any]]:
    found = re.search(r"^const charts = (.*);$", told, re.M)
    assert found
    return {each["title"]: each for each in msgspec.json.decode(found[1])}


def test_it_needs_no_network(told: str):
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", told)
    assert "@import" not in re.sub(r"<script>.*?</script>", "", told, flags=re.S)
    assert told.count("plotly.js v") == 1


def test_it_has_the_figures_of_every_run(told: str):
    drawn = charts(told)
    queue = drawn["Queue"]["traces"]
    assert [line["name"] for line in queue] == ["one <b>", "two"]
    assert max(value for value in queue[0]["y"] if value is not None) > 5
    assert all(len(line["x"]) == len(line["y"]) for chart in drawn.values() for line in chart["traces"])
    assert {"Load", "Tokens asked for", "Running", "Replicas against need", "Outcomes", "Not done"} <= set(drawn)
    assert len(drawn["Time to first token over time"]["traces"]) == 4  # p50 and p99 of both
    curve = drawn["End-to-end latency: distribution"]["traces"][0]
    assert curve["y"][-1] == 1.0
    assert [bar["name"] for bar in drawn["Tenants: what they got"]["traces"]] == ["two", "one <b>"]
    assert sum(drawn["Tenants: what they got"]["traces"][0]["x"]) == pytest.approx(1.0)


def test_every_picture_says_what_it_shows_and_in_which_unit(told: str):
    for chart in charts(told).values():
        assert chart["says"]
        assert chart["unit"] or chart["percent"]
        assert chart["across"] or chart["percent"] == "x"
        assert f'id="{chart["id"]}"' in told


def test_runs_have_the_same_colours_in_every_picture(told: str):
    drawn = charts(told)
    tints = {line["line"]["color"] for chart in ("Queue", "Running", "Not done") for line in drawn[chart]["traces"][:1]}
    assert len(tints) == 1
    assert drawn["Tenants: done in time"]["traces"][1]["marker"]["color"] in tints


def test_the_deadline_that_all_share_is_drawn(told: str):
    drawn = charts(told)
    marked = {title: chart["mark"] for title, chart in drawn.items() if chart["mark"] is not None}
    assert marked == {"End-to-end latency over time": 6.0, "End-to-end latency: distribution": 6.0}
    assert "red: the deadline of 6 s" in drawn["End-to-end latency: distribution"]["says"]
    mixed = Rows([*poisson(5, 1.0).rows, *poisson(5, 1.0, deadline_s=2.0).rows])
    assert all(chart["mark"] is None for chart in charts(page(mixed, survey(mixed), [run(mixed, "one")])).values())


def test_no_run_has_the_colour_of_an_outcome():
    assert not set(COLOURS) & {*KINDS.values(), LIVE, QUIET}


def test_settings_that_differ_are_named(told: str):
    assert "Settings that differ" in told
    assert "chat.replicas" in told


def test_words_of_users_are_only_text(told: str):
    assert "one <b>" not in re.sub(r"<script>.*?</script>", "", told, flags=re.S)
    assert "one &lt;b&gt;" in told
    assert "\\u003cb>" in told


def test_it_says_why_a_line_is_missing(trace: Rows, told: str):
    assert "does not tell how its requests went live" in told
    assert charts(told)["Time to first token: distribution"]["note"].startswith("No live curve")
    rows = [msgspec.structs.replace(row, outcome="done", first_s=0.1, total_s=0.5) for row in trace.rows]
    live = Rows(rows)
    recorded = page(live, survey(live), [run(live, "one")])
    assert charts(recorded)["Time to first token: distribution"]["traces"][-1]["name"] == "live"
    course = {each["name"]: each for each in charts(recorded)["End-to-end latency over time"]["traces"]}
    assert max(value for value in course["live p99"]["y"] if value is not None) == 0.5
    assert charts(recorded)["Outcomes"]["traces"][0]["y"] == ["live", "one"]


def test_times_are_of_day_where_the_trace_tells(trace: Rows):
    dated = Rows(trace.rows[:20])
    dated.header = msgspec.structs.replace(dated.header, epoch=1_700_000_000.0)
    drawn = charts(page(dated, survey(dated), [run(dated, "one")]))
    assert drawn["Load"]["traces"][0]["x"][0].startswith("2023-11-14 22:13:2")
    assert drawn["Load"]["across"] == "time (UTC)"


def test_equal_runs_make_equal_pages(trace: Rows):
    few = Rows(trace.rows[:30])
    assert page(few, survey(few), [run(few, "one")]) == page(few, survey(few), [run(few, "one")])
