import numpy as np
import pytest

from foreserve.foresight.length import Ended
from foreserve.foresight.length_features import MEANING
from foreserve.foresight.length_training import LEAST_SAMPLES, train
from foreserve.foresight.length_verdict import Sample
from tests.foresight.samples import features_of, linear, tokens_of, worded


def rmse(model, held):
    return float(
        np.sqrt(np.mean((np.array([p.mean for p in model.predict(features_of(held))]) - tokens_of(held)) ** 2))
    )


def test_the_same_samples_and_seed_give_the_same_model():
    samples, held = worded(400, 1), features_of(worded(50, 2))
    one, same, other = (train(samples, seed=seed).predict(held) for seed in (3, 3, 4))
    assert one == same != other


def test_all_features_are_no_worse_than_the_length_where_only_that_counts():
    samples, held = linear(1500, 1), linear(500, 2)
    all_, length = (rmse(train(samples, features=name), held) for name in ("usin", "uilo"))
    assert all_ <= length * 1.1
    assert length < 0.25 * float(np.std(tokens_of(held)))


def test_words_are_learned_where_they_count():
    samples, held = worded(1000, 1), worded(400, 2)
    all_, length = (rmse(train(samples, features=name), held) for name in ("usin", "uilo"))
    assert all_ < 0.5 * length


@pytest.mark.parametrize("features", ["uilo", "raft", "inst", "usin"])
def test_quantiles_hold_what_they_say(features):
    samples, held = linear(1500, 3), linear(1500, 4)
    predicted = train(samples, features=features).predict(features_of(held))
    for name, level in (("p50", 0.5), ("p80", 0.8), ("p95", 0.95)):
        covered = np.mean([n <= getattr(p, name) for n, p in zip(tokens_of(held), predicted, strict=True)])
        assert covered == pytest.approx(level, abs=0.06), name


def test_applications_are_told_apart_by_their_instruction_alone():
    from tests.foresight.samples import asked, samples

    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 900)
    batch = [asked("same text", f"Task {kind}.", tokens=20) for kind in kinds]
    found = samples(batch, np.maximum(1, rng.poisson(np.array([3, 40, 500])[kinds])))
    model = train(found[:700], features="raft")
    predicted = np.array([p.p50 for p in model.predict(features_of(found[700:]))])
    assert np.abs(predicted / tokens_of(found[700:]) - 1).mean() < 0.4


def test_answers_that_were_cut_count_as_longer():
    rng = np.random.default_rng(7)
    whole, limits = worded(1500, 1), rng.integers(100, 700, 1500)
    samples = [
        Sample(s.features, Ended(tokens=min(s.ended.tokens, int(most)), censored=bool(s.ended.tokens > most)))
        for s, most in zip(whole, limits, strict=True)
    ]
    assert 0.15 < np.mean([sample.ended.censored for sample in samples]) < 0.5
    believed = [Sample(s.features, Ended(tokens=s.ended.tokens)) for s in samples]
    left_out = [s for s in samples if not s.ended.censored]
    held = worded(500, 2)
    long = [s for s in held if s.ended.tokens > 200]
    truth = float(np.median(tokens_of(long)))
    errors = {
        name: abs(float(np.median([p.p50 for p in train(given).predict(features_of(long))])) - truth)
        for name, given in (("heard", samples), ("believed", believed), ("left out", left_out))
    }
    assert errors["heard"] < 0.1 * truth
    assert errors["heard"] < errors["believed"]
    assert errors["heard"] < errors["left out"]


def test_a_warm_start_goes_on_from_the_old_model():
    samples, held = worded(900, 1), worded(300, 2)
    old = train(samples[:500])
    warm = train(samples, warm=old)
    assert warm.about.samples == 900
    assert np.array_equal(warm.bins.length, old.bins.length)
    assert rmse(warm, held) < 1.15 * rmse(old, held)
    other = train(samples, features="uilo", warm=old)
    assert other.about.features == "uilo"


def test_meanings_are_read_where_all_have_them():
    import msgspec

    rng = np.random.default_rng(5)
    plain = worded(800, 1)

    def meant(sample):
        meaning = rng.normal(0, 0.05, 2 * MEANING).astype(np.float16)
        meaning[MEANING] = sample.ended.tokens > 200
        no_words = msgspec.structs.replace(sample.features, words=np.zeros(0, np.uint16), meaning=meaning)
        return Sample(no_words, sample.ended)

    full = [meant(sample) for sample in plain]
    model = train(full[:600])
    assert model.full
    assert model.source == "full"
    assert rmse(model, full[600:]) < 100
    with pytest.raises(ValueError, match="encoder"):
        model.predict(features_of(plain[:1]))
    assert not train([*full, plain[0]]).full


def test_too_few_samples_and_strange_ones():
    with pytest.raises(ValueError, match=str(LEAST_SAMPLES)):
        train(worded(LEAST_SAMPLES - 1, 1))
    same = [Sample(s.features, Ended(tokens=7)) for s in worded(LEAST_SAMPLES, 1)]
    assert train(same).predict(features_of(same))[0].p50 == pytest.approx(7, abs=1)
    cut = [Sample(s.features, Ended(tokens=7, censored=True)) for s in same]
    assert train(cut).predict(features_of(cut))[0].p50 >= 6
