from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Work
from foreserve.dispatch.buckets import STEP, Buckets, Waiting


def waiting(number: int, arrival: float, seconds: float, utility: float = 1.0) -> Waiting:
    work = Work(id=f"q{number}", payload=None, cost={"slots": 1}, arrival=arrival, utility=utility)
    return Waiting(work, "t", seconds, number)


def ratio(one: Waiting, now: float, patience: float | None) -> float:
    own = one.seconds if patience is None else patience
    return one.work.utility * (now - one.work.arrival + own) / one.seconds


requests = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.01, 50), st.floats(0.25, 4)), min_size=1, max_size=60
)  # arrival, expected seconds, utility


@given(requests, st.sampled_from([None, 0.5, 4.0]), st.data())
def test_the_best_is_found_up_to_the_step(rows: list[tuple[float, float, float]], patience: float | None, data):
    buckets = Buckets(own=patience is None)
    there = [waiting(number, *row) for number, row in enumerate(rows)]
    for one in there:
        buckets.add(one)
    now = 100.0
    while there:
        assert len(buckets) == len(there)
        scores = buckets.scores(now, patience or 0.0)
        row = int(scores.argmax())
        best = buckets.head(row)
        truth = max(ratio(one, now, patience) for one in there)
        assert ratio(best, now, patience) >= truth / (1 + 2.1 * STEP)
        assert abs(scores[row] - ratio(best, now, patience)) <= 1e-6 * truth
        assert buckets.oldest().work.arrival == min(one.work.arrival for one in there)
        gone = best if data.draw(st.booleans()) else data.draw(st.sampled_from(there))
        there.remove(gone)
        buckets.remove(gone)


def test_who_leaves_is_forgotten_even_below_the_head():
    buckets = Buckets(own=False)
    there = [waiting(number, float(number), 1.0) for number in range(1000)]
    for one in there:
        buckets.add(one)
    bucket = there[0].bucket
    assert bucket is not None
    for one in there[1:-1]:
        buckets.remove(one)
    assert len(buckets) == 2
    assert len(bucket.heap) <= 20, "memory follows what waits"
    buckets.remove(there[0])
    assert buckets.oldest() is there[-1]


def test_one_that_comes_late_by_its_arrival_goes_first():
    buckets = Buckets(own=False)
    buckets.add(waiting(0, 5.0, 1.0))
    again = waiting(1, 2.0, 1.0)
    buckets.add(again)
    assert buckets.oldest() is again
    assert buckets.head(int(buckets.scores(9.0, 1.0).argmax())) is again


def test_the_number_of_buckets_is_bounded_whatever_is_expected():
    buckets = Buckets(own=False)
    for number, seconds in enumerate([0.0, 1e-30, 1e30, 1.0]):
        buckets.add(waiting(number, 0.0, seconds))
    assert len(buckets.scores(1.0, 1.0)) == 3
