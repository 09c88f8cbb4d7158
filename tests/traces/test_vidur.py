import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.traces.vidur import open_vidur


def write(tmp_path, rows):
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens,pd_ratio\n" + rows)
    return path


def test_arrivals_are_poisson_and_the_same_for_a_seed(tmp_path):
    path = write(tmp_path, "5,6,0.8\n" * 20_000)
    first, again, other = (
        np.array([row.arrival for row in open_vidur(path, rate=4.0, seed=seed)]) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()
    gaps = np.diff(first)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_columns_are_found_by_name_in_any_place(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("x,num_decode_tokens,num_prefill_tokens\n0,6,5\n")
    assert [(row.input_tokens, row.output_tokens) for row in open_vidur(path, rate=1.0)] == [(5, 6)]


@pytest.mark.parametrize(
    ("row", "says"),
    [("5", "1 columns"), ("5.5,6", "whole numbers"), ("a,6", "'num_prefill_tokens': 'a' is no number")],
)
def test_bad_rows(tmp_path, row, says):
    with pytest.raises(ConfigError, match=f"line 3: .*{says}"):
        list(open_vidur(write(tmp_path, f"1,2\n{row}\n"), rate=1.0))
