import numpy as np

from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import featurise
from foreserve.foresight.length_history import History
from tests.foresight.samples import asked


def predict(history, one):
    return history.predict(featurise([one]))[0]


def test_with_nothing_known_the_limit_is_the_answer():
    length = predict(History(), asked(most=77))
    assert (length.mean, length.p50, length.p95, length.source) == (77, 77, 77, "limit")


def test_the_histogram_is_used_as_soon_as_enough_was_seen():
    history, one = History(), asked(tokens=100)
    for count in range(1, 20):
        history.learn(one, Ended(tokens=50))
        assert predict(history, one).source == ("limit" if count < 5 else "histogram"), count
    length = predict(history, one)
    assert 47 < length.p50 < 53
    assert 47 < length.mean < 53


def test_the_narrowest_histogram_that_knows_enough_is_used():
    history = History()
    for _ in range(20):
        history.learn(asked(tokens=10, tenant="a"), Ended(tokens=10))
        history.learn(asked(tokens=1000, tenant="a"), Ended(tokens=1000))
        history.learn(asked(instruction="Sum up.", tenant="b", tokens=1000), Ended(tokens=30))
    assert 9 < predict(history, asked(tokens=11)).p50 < 11
    assert 900 < predict(history, asked(tokens=900, tenant="a")).p50 < 1100
    assert 28 < predict(history, asked(instruction="Sum up.", tokens=5)).p50 < 32
    assert 28 < predict(history, asked(tenant="b", tokens=1000)).p50 < 32


def test_it_forgets():
    history = History(half_life=50)
    for _ in range(300):
        history.learn(asked(), Ended(tokens=1000))
    for _ in range(200):
        history.learn(asked(), Ended(tokens=10))
    assert predict(history, asked()).p80 < 12
    for _ in range(3000):  # numbers that grow are brought down
        history.learn(asked(), Ended(tokens=10))
    assert predict(history, asked()).mean < 11


def test_an_answer_that_was_cut_is_longer_than_that():
    rng = np.random.default_rng(3)
    lengths = np.round(np.exp(rng.normal(5, 0.7, 2000))).astype(int) + 1
    knowing, ignoring = History(half_life=1e9), History(half_life=1e9)
    for n, limit in zip(lengths, rng.integers(50, 800, 2000), strict=True):
        ended = Ended(tokens=int(min(n, limit)), censored=bool(n > limit))
        knowing.learn(asked(), ended)
        if not ended.censored:
            ignoring.learn(asked(), ended)
    truth = np.quantile(lengths, 0.8)
    heard, unheard = predict(knowing, asked()).p80, predict(ignoring, asked()).p80
    assert abs(heard - truth) < 0.1 * truth
    assert unheard < 0.9 * truth


def test_where_all_were_cut_the_limit_is_expected():
    history = History()
    for _ in range(50):
        history.learn(asked(), Ended(tokens=64, censored=True))
    assert predict(history, asked(most=256)).p50 == 256


def test_it_is_bounded_and_can_forget_a_tenant():
    history = History(most_keys=40)
    for n in range(500):
        history.learn(asked(tenant=f"t{n}"), Ended(tokens=5))
    assert len(history._known) == 40
    wide = History()
    for _ in range(30):
        wide.learn(asked(tenant="a"), Ended(tokens=5))
    wide.forget("a")
    assert not wide.past(0, featurise([asked(tenant="a")])[0].tenant).any()
    assert predict(wide, asked(tenant="a")).source == "histogram"
    wide.forget()
    assert predict(wide, asked(tenant="a")).source == "limit"


def test_stored_features_teach_the_same():
    live, again = History(), History()
    for n in range(60):
        one, ended = asked(instruction="Go." * (n % 2), tenant=f"t{n % 3}", tokens=n), Ended(tokens=n + 1)
        live.learn(one, ended)
        features = featurise([one])[0]
        again.learn_of(features.app, features.tenant, features.input_tokens, ended)
    batch = featurise([asked(instruction="Go."), asked(tenant="t1"), asked(tokens=50)])
    assert live.predict(batch) == again.predict(batch)
