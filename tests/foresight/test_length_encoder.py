import importlib.util

import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.foresight import length_encoder
from foreserve.foresight.length_encoder import MEANING, MOST_TOKENS, MiniLM, read_safetensors
from foreserve.models.catalog import locate

TEXTS = ["How do I sort a list in Python?", "Sort an array, please.", "The cat sat on the mat.", "word " * 900, ""]


@pytest.fixture(scope="module")
def folder():
    return locate("minilm", "test").path


@pytest.fixture(scope="module", params=["openvino", "torch"])
def encoder(request, folder):
    pytest.importorskip(request.param)
    return MiniLM(folder, backend=request.param)


@pytest.mark.model
def test_meanings_are_of_length_one_and_near_for_what_is_near(encoder):
    found = encoder.inputs(TEXTS).astype(np.float32)
    assert found.shape == (5, MEANING)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5), abs=1e-2)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    alone = np.concatenate([encoder.inputs([text]) for text in TEXTS])
    assert np.abs(alone - found).max() < 0.02


@pytest.mark.model
def test_an_instruction_remembered_is_the_same_as_encoded(encoder, folder):
    first = encoder.instructions(["Sum up.", "", "Translate.", "Sum up."])
    again = encoder.instructions(["Translate.", "Sum up."])
    assert np.array_equal(first[[2, 0]], again)
    assert np.array_equal(first[0], first[3])
    assert not first[1].any()
    assert np.array_equal(MiniLM(folder, backend=encoder.backend).instructions(["Sum up."])[0], first[0])


@pytest.mark.model
def test_what_is_remembered_is_bounded(encoder, monkeypatch):
    monkeypatch.setattr(length_encoder, "REMEMBERED", 3)
    encoder.instructions([f"task {n}" for n in range(6)])
    assert len(encoder._remembered) <= 3 + 3  # what was there before goes one by one


@pytest.mark.model
def test_a_long_text_is_cut_in_its_middle(encoder):
    ids = encoder._tokens("begin " + "middle " * 5000 + "end", MOST_TOKENS)
    assert len(ids) == MOST_TOKENS
    short = encoder._tokens("begin end", MOST_TOKENS)
    assert ids[:2] == short[:2]
    assert ids[-2:] == short[-2:]


@pytest.mark.model
def test_both_backends_agree(folder):
    if not all(map(importlib.util.find_spec, ("openvino", "torch"))):
        pytest.skip("needs both")
    one, other = (MiniLM(folder, backend=name).inputs(TEXTS).astype(np.float32) for name in ("openvino", "torch"))
    assert (one * other).sum(axis=1) == pytest.approx(np.ones(5), abs=0.01)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    with pytest.raises(ConfigError, match=r"foreserve\[openvino\]"):
        MiniLM(tmp_path, backend="no_such_backend")
    monkeypatch.setattr(length_encoder, "_backend", lambda wanted: "torch")
    with pytest.raises(ConfigError, match="not a usable sentence encoder"):
        MiniLM(tmp_path)


def test_arrays_are_read_from_safetensors(tmp_path):
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    header = b'{"__metadata__":{},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + array.tobytes())
    assert np.array_equal(read_safetensors(file)["a"], array)
