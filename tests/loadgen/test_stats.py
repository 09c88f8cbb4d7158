from array import array

import pytest

from foreserve.loadgen.records import Attempt, Ending, Recording, Result
from foreserve.loadgen.stats import Targets, WarmUp, distribution, e2e, summarise, tpot, ttft


def result(index=0, due=0.0, sent=None, times=(0.5, 0.7, 1.0), ended=1.1, tokens=6, **changes):
    sent = due if sent is None else sent
    fields = {
        "ending": Ending.DONE,
        "status": 200,
        "first": due + times[0] if times else None,
        "attempts": (Attempt(200, ended),),
        "output_times": array("d", [due + at for at in times]),
        "output_tokens": tokens,
        "prompt_tokens": 10,
    } | changes
    return Result(index=index, due=due, sent=sent, ended=due + ended, **fields)


def refused(index, due):
    attempts = (Attempt(429, 0.01), Attempt(429, 0.03))
    return result(
        index, due, times=(), ended=2.0, tokens=0, ending=Ending.REFUSED, status=429, attempts=attempts, first=None
    )


def test_one_request_by_hand():
    one = result()
    assert ttft(one) == 0.5
    assert e2e(one) == 1.1
    assert tpot(one) == pytest.approx((1.1 - 0.5) / 5)
    assert tpot(result(tokens=1)) is None
    assert tpot(result(times=(), tokens=9)) is None


def test_latency_counts_from_the_send_and_lag_apart():
    one = result(sent=0.2)
    assert ttft(one) == pytest.approx(0.3)
    assert summarise([one]).lag.max == pytest.approx(0.2)


def test_a_summary_by_hand():
    results = [result(0, 0.0), result(1, 1.0, ended=2.0, tokens=4), refused(2, 2.0)]
    s = summarise(results)
    assert (s.requests, s.done, s.warm_up, s.attempts) == (3, 2, 0, 4)
    assert s.endings == {"done": 2, "refused": 1}
    assert s.statuses == {"200": 2, "429": 2}
    assert s.window_s == pytest.approx(4.0), "from the first due to the last end"
    assert s.offered_per_s == pytest.approx(1.0)
    assert s.requests_per_s == pytest.approx(0.5)
    assert (s.output_tokens, s.prompt_tokens) == (10, 20)
    assert s.output_tokens_per_s == pytest.approx(2.5)
    assert (s.ttft.n, s.ttft.p50) == (2, pytest.approx(0.5))
    assert s.e2e.p50 == pytest.approx((1.1 + 2.0) / 2)
    assert (s.itl.n, s.itl.min, s.itl.max) == (4, pytest.approx(0.2), pytest.approx(0.3))
    assert s.tokens_per_event == pytest.approx(10 / 6)
    assert (s.refused_attempts, s.refusal.max) == (2, 0.03)
    assert (s.good, s.good_fraction) == (2, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("targets", "good"),
    [
        (Targets(), 3),
        (Targets(e2e=1.5), 2),
        (Targets(e2e=1.1), 2),
        (Targets(ttft=0.5), 3),
        (Targets(ttft=0.4), 0),
        (Targets(tpot=0.13), 2),
        (Targets(e2e=1.5, tpot=0.11), 0),
    ],
)
def test_goodput_asks_every_target(targets, good):
    slow = result(2, 2.0, ended=3.0)
    s = summarise([result(0, 0.0), result(1, 1.0), slow, refused(3, 2.0)], targets)
    assert s.good == good
    assert s.goodput_per_s == pytest.approx(good / 5.0)


def test_what_cannot_be_measured_is_missed_but_one_token_has_no_tpot():
    whole = result(times=(), streamed=False)
    assert Targets(e2e=2.0).met(whole)
    assert not Targets(ttft=9.0).met(whole)
    assert not Targets(tpot=9.0).met(whole)
    assert Targets(tpot=0.001).met(result(times=(0.5,), tokens=1))


def test_warm_up_by_count_and_by_time():
    results = [result(n, float(n)) for n in range(10)]
    assert summarise(results, warm_up=WarmUp(requests=3)).requests == 7
    assert summarise(results, warm_up=WarmUp(seconds=4.5)).requests == 5
    s = summarise(results, warm_up=WarmUp(requests=2, seconds=4.0))
    assert (s.requests, s.warm_up) == (6, 4)
    assert s.window_s == pytest.approx(10.1 - 4.0)


def test_nothing_measured_is_no_division_by_zero():
    s = summarise([])
    assert (s.requests, s.requests_per_s, s.good_fraction, s.ttft, s.lag) == (0, 0.0, 0.0, None, None)
    s = summarise([result()], warm_up=WarmUp(requests=5))
    assert (s.requests, s.warm_up, s.goodput_per_s) == (0, 1, 0.0)


def test_percentiles_are_linear_between_ranks():
    d = distribution([float(n) for n in range(101)])
    assert (d.n, d.mean, d.p50, d.p90, d.p99, d.min, d.max) == (101, 50.0, 50.0, 90.0, 99.0, 0.0, 100.0)
    assert distribution([1.0, 2.0]).p50 == 1.5


def test_a_new_attempt_forgets_what_the_last_one_delivered():
    recording = Recording(0, 0.0)
    recording.sent = 0.1
    recording.output(0.2)
    recording.output_tokens = 5
    recording.begin()
    recording.output(0.9)
    recording.output(1.0)
    done = recording.result(Ending.DONE, 1.1)
    assert (done.first, done.sent, done.output_tokens, done.counted) == (0.9, 0.1, 2, True)
