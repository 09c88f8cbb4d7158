import pytest

from foreserve.elastic.cost import VIT_B_16, Shape, macs, token_counts
from foreserve.elastic.setting import Merge, Plain, Prompts, Setting

TABLE: list[tuple[Setting, float, float, int]] = [
    (Plain(), 17.56, 1.0, 197),
    (Merge(4), 15.32, 1.15, 149),
    (Merge(8), 13.10, 1.34, 101),
    (Merge(10), 12.00, 1.46, 77),
    (Merge(13), 10.37, 1.69, 41),
    (Merge(15), 9.28, 1.89, 17),
    (Merge(16), 8.77, 2.00, 11),
    (Merge(20), 7.13, 2.46, 4),
]
"""ViT-B/16 at 224 pixels: setting, 10^9 multiply-accumulates, how many times fewer, tokens at the end."""

PROMPTS = [
    (1, 17.66, 1.005),
    (4, 17.93, 1.021),
    (8, 18.30, 1.042),
    (16, 19.04, 1.084),
    (50, 22.22, 1.265),
    (100, 26.97, 1.535),
]


@pytest.mark.parametrize(("setting", "giga", "times", "left"), TABLE)
def test_merging_in_a_vit_b_16(setting: Setting, giga: float, times: float, left: int) -> None:
    assert round(macs(VIT_B_16, setting) / 1e9, 2) == giga
    assert round(macs(VIT_B_16) / macs(VIT_B_16, setting), 2) == times
    assert [*token_counts(VIT_B_16, setting)][-1][1] == left


@pytest.mark.parametrize(("p", "giga", "times"), PROMPTS)
def test_prompts_in_a_vit_b_16(p: int, giga: float, times: float) -> None:
    assert round(macs(VIT_B_16, Prompts(p)) / 1e9, 2) == giga
    assert round(macs(VIT_B_16, Prompts(p)) / macs(VIT_B_16), 3) == times


def test_fixed_tokens_are_never_counted_as_merged() -> None:
    shape = Shape(tokens=5, layers=9, width=8, hidden=16, fixed=4)
    assert {count for pair in token_counts(shape, Merge(3)) for count in pair} == {5}
