import pytest
from benchmarks import data
from benchmarks.common import Report
from benchmarks.routing_cost import decision_us
from benchmarks.routing_load import CONTEXT, KV_TOKENS, chats, mooncake, profile, times
from benchmarks.routing_run import PLACEMENTS, POLICIES, Ran, simulate

from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.placement_anticipated import Anticipated


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FORESERVE_DATA", str(tmp_path))
    assert not data.folder().joinpath("prompts").exists()


def ran(placement: str, rate: float, *, queued: bool = False) -> Ran:
    cases = chats(Report("test", {}), 1)[:1500]
    at = times("poisson", len(cases), rate, 2, 1, 0)
    made, order = PLACEMENTS[placement](), POLICIES["fcfs"]()
    return simulate(made, order, cases, at, 2, profile(), queued=queued)


def test_without_data_requests_are_made_up_and_it_is_said(no_data):
    report = Report("test", {})
    halves = [chats(report, half) for half in (0, 1)]
    assert len(report.notes) == 1
    assert mooncake(report) == ([], [])
    assert len(report.notes) == 2
    for cases in halves:
        assert all(case.prompt + case.output <= CONTEXT for case in cases)
        assert all(1 <= case.predicted.mean <= CONTEXT - case.prompt for case in cases)
    assert {id(case) for case in halves[0]}.isdisjoint(id(case) for case in halves[1])


def test_every_side_serves_all_and_anticipation_pays_where_round_robin_fails(no_data):
    found = {name: ran(name, 8.0) for name in ("round_robin", "least_utilised", "anticipated")}
    assert all(0.2 < one.attainment <= 1.0 for one in found.values())
    assert found["anticipated"].attainment > found["round_robin"].attainment
    assert found["anticipated"].ttft_p99 < found["round_robin"].ttft_p99
    assert (ran("anticipated", 8.0).ttft == found["anticipated"].ttft).all(), "the same seed, the same run"


def test_our_queue_leaves_engines_nothing_to_preempt(no_data):
    assert ran("anticipated", 8.0, queued=True).preemptions < 0.3 * ran("anticipated", 8.0).preemptions


def test_the_engines_are_those_of_the_paper():
    assert (profile().slots, profile().kv_tokens, KV_TOKENS) == (128, 36_896, 36_896)


@pytest.mark.parametrize("made", [Anticipated, LeastRequests])
def test_the_cost_of_a_decision_is_measured(made, no_data):
    lengths = [(case.prompt, case.predicted) for case in chats(Report("test", {}), 1)]
    assert all(mean > 0 for mean in decision_us(made(), lengths, 8, 50, 2))
