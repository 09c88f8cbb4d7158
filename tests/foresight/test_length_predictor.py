import numpy as np
import pytest

from foreserve.core import Length
from foreserve.foresight.length import Ended, LengthPredictor
from foreserve.foresight.length_distribution import LEVELS
from foreserve.foresight.length_predictor import MOST_DRIFT, Coverage, Predictor
from foreserve.foresight.length_training import train
from tests.foresight.samples import asked, features_of, tokens_of, worded


@pytest.fixture(scope="module")
def model():
    return train(worded(500, 1), seed=1)


def test_the_chain_of_what_is_known(model):
    predictor: LengthPredictor = Predictor()
    one = asked("an essay", most=500)
    assert predictor.predict([one])[0].source == "limit"
    for _ in range(6):
        predictor.learn(one, Ended(tokens=30))
    assert predictor.predict([one])[0].source == "histogram"
    assert predictor.swap(model).better
    assert predictor.predict([one])[0].source == "fast"
    assert predictor.swap(None).better
    assert predictor.predict([one])[0].source == "histogram"
    assert predictor.predict([]) == []


def test_an_application_that_the_model_never_saw_is_left_to_its_histogram(model):
    predictor = Predictor(model)
    new, known = asked("brief", "A new task."), asked("brief")
    assert {length.source for length in predictor.predict([new, known])} == {"fast"}
    for _ in range(25):
        predictor.learn(new, Ended(tokens=3000))
    lengths = predictor.predict([known, new, known])
    assert [length.source for length in lengths] == ["fast", "histogram", "fast"]
    assert lengths[1].p50 > 2000 > lengths[0].p50 == lengths[2].p50


def test_a_worse_model_is_refused_and_the_old_one_stays(model):
    predictor, newest = Predictor(model), worded(200, 9)
    wrong = train([type(s)(s.features, Ended(tokens=9)) for s in worded(300, 2)])
    verdict = predictor.swap(wrong, newest)
    assert not verdict.better
    assert "refused" in verdict.why
    assert predictor.model is model
    assert predictor.swap(train(worded(2000, 3)), newest).better
    assert predictor.model is not model


def test_the_first_model_must_be_no_worse_than_the_histograms():
    predictor, newest = Predictor(), worded(200, 9)
    for sample in worded(200, 8):
        predictor.learn_features(sample.features, sample.ended)
    wrong = train([type(s)(s.features, Ended(tokens=3000)) for s in worded(300, 2)])
    assert not predictor.swap(wrong, newest).better
    assert predictor.model is None


def test_stored_features_are_predicted_and_learned_as_requests_are(model):
    one, other = Predictor(model), Predictor(model)
    for n in range(40):
        ask, ended = asked("brief", tenant=f"t{n % 2}", tokens=n), Ended(tokens=n + 1)
        features = other.featurise([ask])
        lengths = one.predict([ask]), other.predict_features(features)
        assert lengths[0] == lengths[1]
        one.learn(ask, ended, lengths[0][0])
        other.learn_features(features[0], ended, lengths[1][0])
    assert one.coverage.levels == other.coverage.levels != LEVELS


def test_a_full_model_wants_an_encoder(model):
    class Full:
        full = True

    with pytest.raises(ValueError, match="encoder"):
        Predictor(Full())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="encoder"):
        Predictor().swap(Full())  # type: ignore[arg-type]


def test_quantiles_become_true_again_when_answers_grow(model):
    """All answers are suddenly a fifth longer: the share within p80 comes back, as far as levels may drift."""
    still, moving, held = Predictor(model), Predictor(model), worded(1500, 11)
    within = {"still": [], "moving": []}
    for sample in held:
        tokens = round(sample.ended.tokens * 1.1)
        for name, predictor in (("still", still), ("moving", moving)):
            length = predictor.predict_features([sample.features])[0]
            within[name].append(tokens <= length.p80)
            if name == "moving":
                predictor.learn_features(sample.features, Ended(tokens=tokens), length)
    late = {name: np.mean(told[600:]) for name, told in within.items()}
    assert abs(late["moving"] - 0.8) < 0.07
    assert late["still"] < late["moving"] - 0.05


def test_levels_drift_no_further_than_allowed():
    coverage, told = Coverage(), Length(mean=10, p50=10, p80=10, p95=10, source="fast")
    for _ in range(1000):
        coverage.learn(told, Ended(tokens=1000))
    assert coverage.levels == pytest.approx((0.5 + MOST_DRIFT, 0.9, 0.975))
    for _ in range(1000):
        coverage.learn(told, Ended(tokens=1))
    assert coverage.levels == pytest.approx((0.5 - MOST_DRIFT, 0.7, 0.925))
    before = coverage.levels
    coverage.learn(told, Ended(tokens=5, censored=True))
    assert coverage.levels == before


def test_quantiles_that_are_a_requests_own_limit_do_not_move_those_of_others():
    """Answers of 1 to 1000 tokens, half of which are cut at 500: below it they say nothing of a p80 of 800."""
    coverage, within = Coverage(), []
    for number in range(6000):
        most = 500 if number % 2 else 5000
        p50, p80, p95 = (min(1000.0 * level, most) for level in coverage.levels)
        told, tokens = Length(mean=p50, p50=p50, p80=p80, p95=p95, source="fast"), 1 + number * 617 % 1000
        cut = tokens >= most
        coverage.learn(told, Ended(tokens=min(tokens, most), censored=cut), most)
        if most > 1000:
            within.append(tokens <= p80)
    assert abs(np.mean(within[1000:]) - 0.8) < 0.02


def test_features_of_a_predictor_are_those_of_its_history(model):
    predictor = Predictor(model)
    for sample in worded(50, 5):
        predictor.learn_features(sample.features, sample.ended)
    assert predictor.featurise([asked()])[0].past[5] > 0.9
    assert tokens_of(worded(3, 5)).shape == (3,) == (len(features_of(worded(3, 5))),)
