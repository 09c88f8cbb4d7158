import json
import tarfile

import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.traces.servegen_data import is_servegen, pdf, read_clients
from tests.traces import servegen as small


def test_a_folder_and_an_archive_read_the_same(tmp_path):
    folder = small.write(tmp_path / "m" / "small")
    archive = tmp_path / "m.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        file.add(tmp_path / "m", "m")
    from_folder, from_archive = read_clients(tmp_path / "m"), read_clients(archive)
    assert [client.windows for client in from_folder] == [client.windows for client in from_archive]
    assert [client.datasets for client in from_folder] == [client.datasets for client in from_archive]
    assert [client.number for client in read_clients(folder)] == [0, 3]
    assert is_servegen(folder)
    assert is_servegen(archive)


def test_a_client_without_lengths_is_left_out_and_logged(tmp_path, caplog):
    folder = small.write(tmp_path)
    (folder / "chunk-3-dataset.json").unlink()
    assert [client.number for client in read_clients(folder)] == [0]
    assert "1 of 2 clients have no lengths (or no rates) in it and are left out: 3" in caplog.text
    (folder / "chunk-0-dataset.json").unlink()
    with pytest.raises(ConfigError, match="no client has both"):
        read_clients(folder)


def test_two_models_in_one_folder_are_not_mixed(tmp_path):
    small.write(tmp_path / "a")
    small.write(tmp_path / "b")
    with pytest.raises(ConfigError, match="one of its folders, a, b"):
        read_clients(tmp_path)


def test_a_distribution_is_drawn_from_by_its_weights():
    found = pdf("{10: 0.25, 20: 0.5, 30: 0.25}", "x")
    assert found.draw(np.array([0.0, 0.24, 0.26, 0.74, 0.76, 0.9999999])).tolist() == [10, 10, 20, 20, 30, 30]
    assert pdf("{}", "x") is None


@pytest.mark.parametrize("text", ["{1: }", "{1: 0.0}", "{1: -1.0, 2: 2.0}", "[1]", "{a: 1}", "__import__('os')"])
def test_what_is_no_distribution(text):
    with pytest.raises(ConfigError, match="x: "):
        pdf(text, "x")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,2,3\n", "line 1: 3 columns"),
        ("0,1,1,Pareto,1,1\n", "line 1: family 'Pareto'"),
        ("0,1,1,Gamma,0,1\n", "line 1: family 'Gamma', shape 0"),
        ("0,0,0,,0,0\n0,0,0,,0,0\n", "line 2: start 0 s"),
        ("0,-1,0,,0,0\n", "rate -1"),
        ("0,nan,0,,0,0\n", "rate nan"),
        ("x,0,0,,0,0\n", "line 1: could not convert"),
    ],
)
def test_malformed_rates(tmp_path, row, says):
    small.write(tmp_path)
    (tmp_path / "chunk-0-trace.csv").write_text(row)
    with pytest.raises(ConfigError, match=says):
        read_clients(tmp_path)


def test_malformed_lengths(tmp_path):
    small.write(tmp_path)
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps({"x": {}}))
    with pytest.raises(ConfigError, match=r"chunk-0-dataset\.json: could not convert"):
        read_clients(tmp_path)


def test_an_archive_that_is_none(tmp_path):
    (tmp_path / "x.tar.xz").write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_clients(tmp_path / "x.tar.xz")
    with tarfile.open(tmp_path / "y.tar", "w"):
        pass
    with pytest.raises(ConfigError, match="no chunk-N"):
        read_clients(tmp_path / "y.tar")
