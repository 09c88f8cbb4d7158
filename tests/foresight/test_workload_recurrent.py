from __future__ import annotations

import numpy as np
import pytest

from foreserve.foresight import workload_recurrent
from foreserve.foresight.workload_recurrent import HIDDEN, INPUTS, Recurrent, run
from tests.foresight.loads import daily, series

torch = pytest.importorskip("torch")

from foreserve.foresight import workload_training  # noqa: E402


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training in this process."""
    monkeypatch.setattr(workload_training, "MOST_UPDATES", 30)
    monkeypatch.setattr(
        workload_recurrent, "_trained", lambda scaled: workload_training.train(scaled.astype(np.float32)).arrays()
    )


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "mx": (1, HIDDEN), "mh": (HIDDEN, HIDDEN), "x": (1, 4 * HIDDEN), "m": (HIDDEN, 4 * HIDDEN),
        "b": (4 * HIDDEN,), "out": (HIDDEN, 1), "bias": (1,),
    }  # fmt: skip
    return {name: rng.normal(0.0, 0.3, shape) for name, shape in shapes.items()}


def test_the_input_multiplies_the_state_into_every_gate() -> None:
    weights = random_weights()
    inputs = np.random.default_rng(1).random((3, 2))
    # By hand, unit by unit: after the first step the state is that of no multiplication, as it began at zero.
    hidden, cell = np.zeros((3, HIDDEN)), np.zeros((3, HIDDEN))
    for step in range(2):
        m = np.einsum("r,h->rh", inputs[:, step], weights["mx"][0]) * np.einsum("rh,hk->rk", hidden, weights["mh"])
        z = (
            np.einsum("r,g->rg", inputs[:, step], weights["x"][0])
            + np.einsum("rk,kg->rg", m, weights["m"])
            + weights["b"]
        )
        i, f, o, g = (z[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
        sigmoid = lambda a: 1.0 / (1.0 + np.exp(-a))  # noqa: E731
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
    assert run(weights, inputs) == pytest.approx(hidden @ weights["out"][:, 0] + weights["bias"][0], rel=1e-9)
    without = {**weights, "m": np.zeros_like(weights["m"])}
    assert not np.allclose(run(without, inputs), run(weights, inputs)), "m reaches the gates"


def test_what_is_trained_computes_what_is_run() -> None:
    weights = random_weights()
    inputs = np.random.default_rng(2).random((4, INPUTS))
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    assert workload_training._run(tensors, torch.from_numpy(inputs)).numpy() == pytest.approx(run(weights, inputs))


def test_a_training_is_the_same_for_the_same_series(few: None) -> None:
    given = daily(8)
    origins = np.arange(150, 192)
    one, other = (Recurrent().fit(given, 2).forecast(given, origins, 2) for _ in range(2))
    assert np.array_equal(one, other)
    assert np.isfinite(one).all()


def test_two_steps_ahead_are_told_from_the_first(few: None) -> None:
    given = daily(8)
    model = Recurrent().fit(given, 2)
    end = np.array([len(given) - 1])
    first = model.forecast(given, end, 1)
    longer = series(np.concatenate([given.values, first]))
    assert model.forecast(longer, end + 1, 1) == pytest.approx(model.forecast(given, end, 2))


def test_history_shorter_than_its_inputs_tells_nothing(few: None) -> None:
    model = Recurrent().fit(daily(8), 2)
    found = model.forecast(daily(2), np.array([INPUTS - 2, INPUTS - 1]), 2)
    assert np.isnan(found[0])
    assert np.isfinite(found[1])


def test_a_training_that_fails_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(ValueError, match=r"its training failed: .*No such file"):
        Recurrent().fit(daily(8), 2)


@pytest.mark.slow
def test_it_learns_a_load_with_a_day_in_a_process_of_its_own() -> None:
    given = daily(20, noise=0.02)
    model = Recurrent().fit(given.before(384), 2)
    origins = np.arange(384, len(given) - 2)
    truth = given.values[origins + 2]
    error = np.abs(model.forecast(given, origins, 2) - truth) / truth
    assert error.mean() < (np.abs(given.values[origins] - truth) / truth).mean()
