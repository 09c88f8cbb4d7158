import pytest

from foreserve.core import Length
from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import featurise
from foreserve.foresight.length_verdict import Sample, better, loss
from tests.foresight.samples import asked


class Says:
    def __init__(self, p50, p80=None, p95=None):
        self.length = Length(mean=p50, p50=p50, p80=p80 or p50, p95=p95 or p80 or p50, source="test")

    def predict(self, batch):
        return [self.length] * len(batch)


def held(*tokens, censored=False):
    features = featurise([asked()])[0]
    return [Sample(features, Ended(tokens=n, censored=censored)) for n in tokens]


def test_the_pinball_loss():
    assert loss(Says(10, 10, 10), held(20)) == pytest.approx(10 * (0.5 + 0.8 + 0.95) / 3)
    assert loss(Says(10, 10, 10), held(4)) == pytest.approx(6 * (0.5 + 0.2 + 0.05) / 3)


def test_a_cut_answer_says_nothing_of_what_is_above_it():
    assert loss(Says(10), held(4, censored=True)) == 0
    assert loss(Says(10), held(20, censored=True)) == loss(Says(10), held(20))


def test_the_better_one_is_taken_and_the_words_say_why():
    good, bad, answers = Says(20, 30, 40), Says(5), held(10, 20, 30)
    taken, refused = better(good, bad, answers), better(bad, good, answers)
    assert taken.better
    assert not refused.better
    assert (taken.new, taken.old) == (refused.old, refused.new)
    assert "refused" in refused.why
    assert f"{refused.new:.2f}" in refused.why
    assert better(good, good, answers).better
    assert better(bad, None, answers).better
    assert better(bad, good, []).better
