import asyncio
import json
from array import array

import pytest
from benchmarks import continuous, continuous_report
from benchmarks.common import Report
from benchmarks.continuous_load import Due, DueClient, Unloaded, fit, share_before, trial_of
from benchmarks.mixes import MIXES, Ask

from foreserve.loadgen.arrivals import generator
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending, Result
from foreserve.loadgen.run import Run


def ask(prompt=10, output=20, tenant="ada"):
    return Ask(messages=[], response="", key="", prompt_tokens=prompt, output_tokens=output, tenant=tenant)


def result(index, ended, ending=Ending.DONE, due=0.0, times=(), **fields):
    return Result(
        index=index, due=due, sent=due, ended=ended, ending=ending, output_times=array("d", times), output_tokens=10,
        **fields,
    )  # fmt: skip


def test_the_unloaded_time_is_fitted():
    true = Unloaded(0.1, 0.001, 0.01)
    asks = [ask(p, o) for p, o in ((10, 5), (100, 50), (200, 3), (30, 90))]
    found = fit([(a, result(0, true.seconds(a))) for a in asks])
    assert [found.fixed, found.per_prompt_token, found.per_output_token] == pytest.approx([0.1, 0.001, 0.01])
    assert true.deadline(ask(100, 10)) == pytest.approx(2 * 0.3 + 1.0)


def test_what_was_not_done_counts_with_its_deadline():
    asks = [ask(tenant="ada"), ask(tenant="bob"), ask(tenant="bob"), ask(tenant="bob")]
    results = [
        result(0, 1.5, due=1.0, times=(1.2, 1.4)),
        result(1, 6.0, due=2.0, times=(4.0, 6.0)),
        result(2, 2.1, Ending.REFUSED, due=2.0, status=429),
        result(3, 4.0, Ending.STREAM_ERROR, due=2.0, status=200, error="its deadline passed while it ran"),
    ]
    trial = trial_of(asks, [2.0, 3.0, 4.0, 5.0], Run(results, 5.0, 0, False))
    assert trial.latency_s == pytest.approx([0.5, 4.0])
    assert trial.capped_s == pytest.approx([0.5, 4.0, 4.0, 5.0])
    assert trial.goodput_per_s == pytest.approx(1 / 5.0), "the second was done too late"
    assert trial.tokens_per_s == pytest.approx((10 + 5) / 5.0), "half of the second came while others were sent"
    assert trial.done_share == {"ada": 1.0, "bob": pytest.approx(1 / 3)}
    assert trial.worst_tenant_p99_s == pytest.approx(4.0)
    assert trial.endings == {"done": 2, "shed": 1, "expired_running": 1}


def test_shares_of_an_answer():
    assert share_before(2.0, result(0, 3.0, times=(1.0, 2.0, 3.0, 4.0))) == 0.5
    assert share_before(2.0, result(0, 3.0)) == 0.0


def test_a_deadline_goes_with_its_request():
    client = DueClient(ClientOptions(url="http://127.0.0.1:1", model="chat", endpoint="chat"), generator(0))
    messages = [{"role": "user", "content": "x"}]
    due = json.loads(client.body(Due(messages=messages, slo_ms=1500.0)))
    assert due["foreserve"] == {"slo_ms": 1500.0}
    assert due["messages"] == messages
    assert "foreserve" not in json.loads(client.body(Prompt(messages=messages)))


def test_ratios_have_the_names_of_their_loads(monkeypatch):
    monkeypatch.setattr(continuous_report, "_draw", lambda *given: None)
    report = Report("continuous", {})
    slow = trial_of([ask()], [9.0], Run([result(0, 2.0, times=(1.0,))], 1.0, 0, False))
    fast = trial_of([ask()], [9.0], Run([result(0, 1.0, times=(1.0,))], 1.0, 0, False))
    continuous_report.add(report, "apps", {0.95: [(fast, slow)], 1.3: [(fast, slow), (slow, slow)]}, ["ours", "fcfs"])
    continuous_report.add(report, "conversations", {1.3: [(slow, fast)]}, ["ours", "fcfs"])
    assert report.figures["mean_latency_vs_fcfs_095"] == pytest.approx(0.5)
    assert report.figures["mean_latency_vs_fcfs"] == pytest.approx(0.75)
    assert report.spread["mean_latency_vs_fcfs"] == pytest.approx((0.5, 1.0))
    assert report.figures["conversations_mean_latency_vs_fcfs"] == pytest.approx(2.0)
    assert {"p99_latency_vs_fcfs", "goodput_vs_fcfs", "throughput_vs_fcfs"} <= set(report.figures)


def test_the_plans_are_of_mixes_that_there_are():
    for plans in (continuous.PLANS, continuous.QUICK):
        assert set(plans) <= set(MIXES)
    assert 1.3 in continuous.PLANS["apps"].repetitions


@pytest.mark.parametrize("side", continuous.SIDES)
def test_the_app_that_is_served_reads(tmp_path, side):
    from foreserve.appfile import load_app_file

    words = {**continuous.SIDES[side].words(), "engine": "simulated"}
    text = continuous.APP.format(
        factory="benchmarks.replay:ReplayedOpenVINO", truths="t", words=words, state={"folder": str(tmp_path)}
    )
    (tmp_path / "app.py").write_text(text.replace('"smollm2"', '"simulated"'))
    kind = load_app_file(str(tmp_path / "app.py")).services["chat"]
    (spec,) = kind.engines()
    assert (spec.factory, spec.options["truths"]) == ("benchmarks.replay:ReplayedOpenVINO", "t")


def test_clients_run_aside():
    from benchmarks.continuous_load import _aside

    async def where():
        return asyncio.get_running_loop() is not None

    assert _aside(lambda: asyncio.run(where()), {0, 1}) is True
    with pytest.raises(ZeroDivisionError):
        _aside(lambda: 1 / 0, {0, 1})
