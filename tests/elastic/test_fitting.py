import pytest
import torch

from foreserve.elastic.fitting import batches, fitted, pace, undominated
from foreserve.elastic.labelled import Labelled
from foreserve.elastic.payload import Encode


def test_settings_that_another_beats_are_left_out() -> None:
    cost = {"merge:8": 1, "merge:4": 2, "plain": 3, "prompts:4": 4, "prompts:8": 5}
    accuracy = {"merge:8": 0.5, "merge:4": 0.5, "plain": 0.8, "prompts:4": 0.79, "prompts:8": 0.9}
    assert undominated(accuracy, cost) == ["merge:8", "plain", "prompts:8"]
    assert undominated({"plain": 0.5, "merge:1": 0.5}, {"plain": 2, "merge:1": 2}) == ["plain"]


def test_every_input_is_in_one_batch_and_the_order_is_the_seeds() -> None:
    payloads = [Encode(ids=[1] * (at % 7 + 1)) for at in range(50)]
    data = Labelled(payloads, [0] * 50)
    for seed in (None, (0, 1), (0, 2)):
        assert sorted(at for chosen in batches(data, 8, seed) for at in chosen) == [*range(50)]
    assert [*batches(data, 8, (0, 1))] == [*batches(data, 8, (0, 1))] != [*batches(data, 8, (0, 2))]


def test_the_rate_rises_for_a_tenth_and_goes_down_to_nothing() -> None:
    rates = [pace(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert pace(0, 1) == 1.0


def test_a_head_tells_apart_what_a_line_can_whatever_the_scale() -> None:
    made = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=made) * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([5.0, 0.0, 1.0])
    truth = (features[:, 1] / 100 + (features[:, 2] - 1) / 0.01 > 0).long()
    weight, bias = fitted(features, truth, 2, decay=1e-4)
    right = ((features @ weight.T + bias).argmax(1) == truth).float().mean()
    assert right > 0.97
