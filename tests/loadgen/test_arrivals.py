import itertools
import lzma

import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.loadgen import arrivals


def times(process, n):
    return np.array([arrival.at for arrival in itertools.islice(process, n)])


def test_poisson_has_its_rate_and_exponential_gaps():
    gaps = np.diff(times(arrivals.poisson(20.0, arrivals.generator(1)), 20_000))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert (gaps >= 0).all()


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_has_its_rate_and_variation(cv):
    gaps = np.diff(times(arrivals.gamma(5.0, cv, arrivals.generator(2)), 50_000))
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_a_seed_gives_the_same_arrivals_and_another_one_others():
    first, again, other = (times(arrivals.poisson(1.0, arrivals.generator(seed)), 3000) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


def test_constant_does_not_drift():
    assert times(arrivals.constant(10.0), 4).tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert times(arrivals.constant(3.0), 30_001)[-1] == 10_000.0


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:48.6805900,5,6\n"
)


def test_azure_csv_starts_at_zero_in_order_of_time(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    rows = arrivals.trace(path)
    assert [row.at for row in rows] == pytest.approx([0.0, 2.0, 4.314579])
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(374, 44), (5, 6), (396, 109)]


def test_compressed_csv_reads_the_same(tmp_path):
    plain, packed = tmp_path / "trace.csv", tmp_path / "trace.csv.xz"
    plain.write_text(AZURE)
    packed.write_bytes(lzma.compress(AZURE.encode()))
    assert arrivals.trace(packed) == arrivals.trace(plain)


def test_jsonl_trace_and_its_scaling(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival": 5, "output_tokens": 3}\n\n{"arrival": 7.5}\n{"arrival": 9}\n')
    rows = arrivals.trace(path)
    assert [row.at for row in rows] == [0.0, 2.5, 4.0]
    assert [row.output_tokens for row in rows] == [3, None, None]
    assert arrivals.mean_rate(rows) == 0.5
    assert [row.at for row in arrivals.scaled(rows, 2.0)] == [0.0, 1.25, 2.0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.csv",
            "when,what\n1,2\n",
            "line 1: no known trace begins with 'when,what'; valid: .*TIMESTAMP,ContextTokens",
        ),
        ("a.csv", AZURE + "yesterday,1,2\n", "line 5: "),
        ("a.csv", AZURE + "2023-11-16 18:15:46,1\n", "line 5: 2 columns"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnan,1,2\n", "line 2: time is nan"),
        ("a.jsonl", '{"arrival": 1}\n{"arival": 2}\n', "line 2: unknown field 'arival'; did you mean 'arrival'"),
        ("a.jsonl", "\n", "no arrivals"),
        ("a.csv.xz", "not xz", "cannot be read"),
    ],
)
def test_a_bad_trace_is_an_error_that_names_the_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        arrivals.trace(path)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_positive_and_finite(rate):
    with pytest.raises(ConfigError, match="rate is"):
        arrivals.poisson(rate, arrivals.generator(0))
    with pytest.raises(ConfigError, match="rate is"):
        arrivals.constant(rate)


def test_a_trace_at_one_time_has_no_rate():
    with pytest.raises(ConfigError, match="no rate"):
        arrivals.mean_rate([arrivals.Arrival(0.0), arrivals.Arrival(0.0)])
