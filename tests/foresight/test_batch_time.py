import pytest

from foreserve.foresight.batch_time import KEPT, LEAST_S, BatchShape, BatchTime
from foreserve.foresight.wma import Shape


def batch(size: int, inputs: int, outputs: int) -> BatchShape:
    return BatchShape(size, Shape(inputs, outputs))


def seconds(of: BatchShape) -> float:
    """An engine: prefill by padded tokens, then steps that grow with the batch."""
    return 0.0004 * of.size * of.longest.input + of.longest.output * (0.03 + 0.001 * of.size)


def some(count: int) -> list[BatchShape]:
    return [batch(1 + i * 7 % 40, 20 + i * 37 % 300, 5 + i * 53 % 200) for i in range(count)]


def taught(count: int, **words: float) -> BatchTime:
    times = BatchTime(**words)  # type: ignore[arg-type]
    for number, each in enumerate(some(count)):
        times.learn(each, each.longest, seconds(each), now=float(number))
    return times


def test_with_nothing_seen_longer_answers_take_longer():
    short, long = BatchTime().estimate([batch(4, 100, 20), batch(4, 100, 200)])
    assert 0 < short < long


def test_with_little_seen_the_pace_is_right():
    times = BatchTime()
    each = batch(8, 100, 50)
    times.learn(each, each.longest, 42.0, now=0.0)
    assert times.estimate([each]) == [pytest.approx(42.0)]


def test_it_learns_what_an_engine_takes():
    times = taught(400, refit_s=1.0)
    unseen = [batch(3 + i * 11 % 40, 25 + i * 29 % 300, 7 + i * 31 % 200) for i in range(50)]
    wrong = [
        abs(found - seconds(each)) / seconds(each) for found, each in zip(times.estimate(unseen), unseen, strict=True)
    ]
    assert sum(wrong) / len(wrong) < 0.25
    untaught = BatchTime().estimate(unseen)
    assert sum(wrong) < sum(abs(f - seconds(e)) / seconds(e) for f, e in zip(untaught, unseen, strict=True))


def test_a_long_prompt_does_not_drown_the_size():
    """Features are standardised: of two neighbours alike in prompt, that of like size and answer counts."""
    times = BatchTime(k=1, refit_s=0.0)
    for size in (1, 2, 30, 31) * 5:
        for inputs in (900, 1000):
            times.learn(batch(size, inputs, 50), Shape(inputs, 50), float(size), now=0.0)
    assert times.estimate([batch(1, 990, 50), batch(31, 910, 50)]) == [1.0, 31.0]


def test_the_same_calls_give_the_same_estimates():
    a, b = taught(900), taught(900)
    assert a.estimate(some(30)) == b.estimate(some(30))


def test_estimates_are_above_zero():
    times = BatchTime()
    assert times.estimate([batch(1, 0, 1)])[0] >= LEAST_S
    for number in range(10):
        times.learn(batch(1, 1, 1), Shape(1, 1), 0.0, now=float(number))
    assert times.estimate([batch(1, 1, 1)]) == [LEAST_S]
    assert times.estimate([]) == []


def test_what_is_kept_is_bounded():
    times = taught(4 * KEPT, refit_s=1e9, gate_s=0.0, gate_share=0.0)
    assert len(times.log) == len(times._wrong) == KEPT
    assert len(times._uniform) <= KEPT


def test_it_is_fitted_anew_only_when_due():
    times = taught(30, refit_s=1e9)
    before = times.fits
    each = batch(4, 40, 40)
    times.learn(each, each.longest, 3.0, now=100.0)
    assert times.fits == before
    assert taught(400, refit_s=50.0).fits > before


def test_a_worse_model_is_dropped():
    """Nonsense once, then the engine as it was: what was learned from nonsense must not replace what held before."""
    times = taught(60, refit_s=1e9)
    before = times.estimate(some(20))
    for each in some(40):
        times.learn(each, each.longest, 500.0, now=100.0)
    for each in some(16):
        times.learn(each, each.longest, seconds(each), now=100.0)
    fits = times.fits
    each = some(1)[0]
    times.learn(each, each.longest, seconds(each), now=1e10)
    assert times.fits == fits
    assert times.estimate(some(20)) == before


def test_the_log_has_what_was_foreseen_beside_what_came():
    times = BatchTime()
    times.learn(batch(2, 10, 20), Shape(10, 35), 4.0, now=1.0)
    (entry,) = times.log
    assert (entry.batch.longest.output, entry.actual.output, entry.seconds) == (20, 35, 4.0)
    assert entry.estimated > 0
