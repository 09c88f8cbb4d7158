import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.foresight.length_model import Model
from foreserve.foresight.length_training import train
from tests.foresight.samples import features_of, tokens_of, worded


@pytest.fixture(scope="module")
def model():
    return train(worded(600, 1, most=300), seed=1)


def test_it_comes_back_from_its_file_and_predicts_the_same(model, tmp_path):
    model.save(tmp_path / "model.npz")
    again = Model.load(tmp_path / "model.npz")
    batch = features_of(worded(50, 2))
    assert again.predict(batch) == model.predict(batch)
    assert again.about == model.about
    assert again.digest == model.digest != train(worded(200, 3)).digest
    assert [file.name for file in tmp_path.iterdir()] == ["model.npz"]


def test_files_that_are_no_models_are_refused_by_name(model, tmp_path):
    file = tmp_path / "model.npz"
    with pytest.raises(ConfigError, match=r"model\.npz"):
        Model.load(file)
    model.save(file)
    whole = bytearray(file.read_bytes())
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a usable length model"):
        Model.load(file)
    for wrong in (b"PK", b"nothing of the sort", b""):
        file.write_bytes(wrong)
        with pytest.raises(ConfigError, match="not a usable length model: it is damaged") as caught:
            Model.load(file)
        assert "pickle" not in str(caught.value)


def test_a_changed_array_is_found(model, tmp_path):
    file = tmp_path / "model.npz"
    model.save(file)
    with np.load(file, allow_pickle=False) as arrays:
        changed = dict(arrays)
    changed["w_out"] = changed["w_out"] + 1
    with file.open("wb") as opened:
        np.savez(opened, **changed)
    with pytest.raises(ConfigError, match="damaged"):
        Model.load(file)


def test_quantiles_are_ordered_and_within_the_requests_limit(model):
    for most in (1, 30, 4096):
        for length in model.predict(features_of(worded(50, 3, most=most))):
            assert 1 <= length.p50 <= length.p80 <= length.p95 <= most
            assert 1 <= length.mean <= most
            assert length.source == "fast"
    assert model.predict([]) == []


def test_one_request_is_predicted_as_in_a_batch(model):
    batch = features_of(worded(20, 4))
    alone = [model.predict([one])[0].p80 for one in batch]
    assert alone == pytest.approx([length.p80 for length in model.predict(batch)], rel=1e-4)


def test_distributions_rise_from_nothing_to_all(model):
    cdf = model.distribution(features_of(worded(50, 5)))
    assert (np.diff(cdf, axis=1) >= 0).all()
    assert (cdf[:, 0] == 0).all()
    assert (cdf[:, -1] == 1).all()


def test_levels_of_held_out_answers_are_even(model):
    held = worded(800, 6, most=10_000)
    levels = train(worded(1500, 7), seed=0).levels_of(features_of(held), tokens_of(held))
    assert np.quantile(levels, [0.2, 0.5, 0.8]) == pytest.approx([0.2, 0.5, 0.8], abs=0.07)
