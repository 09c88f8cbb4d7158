import torch

from foreserve.elastic.weighing import peak_bytes


def test_it_is_the_most_that_is_held_at_once() -> None:
    given = torch.zeros(1000)  # 4000 bytes, there already

    def one_after_the_other() -> None:
        for _ in range(5):
            _made = given + 1.0

    def all_together() -> list[torch.Tensor]:
        return [given + each for each in range(5)]

    # A loop holds the last while it makes the next.
    assert peak_bytes(one_after_the_other) == 8000
    assert peak_bytes(all_together) == 20_000


def test_views_and_what_is_changed_in_place_hold_nothing() -> None:
    given = torch.zeros(10, 100)

    def run() -> None:
        given.t().add_(1.0)
        given.view(-1)[5:].mul_(2.0)

    assert peak_bytes(run) == 0
