import numpy as np
import pytest
from benchmarks import length_sets
from benchmarks.length_sets import Arrivals, Item, arrivals, baselines, errors, samples
from benchmarks.pairs import Pair

from foreserve.foresight.length import Asked
from foreserve.foresight.length_features import featurise


def item(app, tokens, answer, context="c"):
    asked = Asked(instruction=app, text="word " * 3, input_tokens=tokens, prompt_tokens=tokens, most=length_sets.MOST)
    return Item(Pair("test", app, app, asked.text, "", context), asked, answer, featurise([asked])[0])


@pytest.fixture
def given():
    train = [item("a", 10, 10), item("a", 10, 20), item("a", 20, 60), item("b", 100, 200)]
    return Arrivals(train, [item("a", 15, 30), item("b", 100, 100), item("new", 9, 7)])


def test_baselines(given):
    found = baselines(given)
    assert found["mean"][0].tolist() == [72.5] * 3
    assert found["mean"][1].tolist() == [40.0] * 3
    assert found["application"][0].tolist() == [30.0, 200.0, 72.5]
    assert found["histogram"][1].tolist() == [15.0, 200.0, 15.0]
    line = found["input length"][0]
    assert line[1] == pytest.approx(np.polyval(np.polyfit([10, 10, 20, 100], [10, 20, 60, 200], 1), 100))


def test_errors_take_the_point_that_is_better_for_each(given):
    mae, rmse = errors(given, np.array([30.0, 100.0, 10.0]), np.array([30.0, 100.0, 7.2]))
    assert mae == 0
    assert rmse == pytest.approx(np.sqrt(3))
    assert errors(given, np.array([30.0, 100.0, 7.0]), np.zeros(3)) == (0, 0)


def test_samples_know_the_past_of_their_time(given):
    learned, held = samples(given, full=False)
    shares = [sample.features.past[2] for sample in learned]
    assert shares[0] == 0 < shares[1] < shares[2]
    assert shares[3] == 0
    assert held[0].features.past[2] > shares[2]
    assert held[2].features.past[2] == 0
    assert [sample.ended.tokens for sample in held] == [30, 100, 7]


def test_contexts_are_not_split():
    found = [item("a", 5, 5, context=str(n // 4)) for n in range(400)]
    given = arrivals(found, 1)
    assert not {i.pair.context for i in given.train} & {i.pair.context for i in given.held}
    assert 40 < len(given.held) < 130
    assert {id(i) for i in arrivals(found, 2).held} != {id(i) for i in given.held}
