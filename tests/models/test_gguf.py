"""The converter: everything kept but the precision, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.models.catalog import locate
from foreserve.models.gguf import convert, converted_size, precision
from foreserve.models.gguf_file import read_header

SOURCES = ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16", "F32", "BF16")


@pytest.mark.parametrize("weights", ["f16", "q8_0"])
@pytest.mark.parametrize("quantised", SOURCES)
def test_tensors_stay_close_and_fields_stay(
    make_gguf: Callable[..., Path], tmp_path: Path, quantised: str, weights: str
) -> None:
    source = read_header(make_gguf(quantised=quantised))
    told: list[float] = []
    convert(source, tmp_path / "out.gguf", weights, lambda done, what: told.append(done))
    before, after = gguf.GGUFReader(source.path), gguf.GGUFReader(tmp_path / "out.gguf")
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.name == new.name
        assert old.shape.tolist() == new.shape.tolist()
        a, b = (gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in (old, new))
        assert np.abs(a - b).max() <= np.abs(a).max() * (0.0005 if weights == "f16" else 0.005)
        one = len(old.shape) == 1
        assert new.tensor_type.name == ("F32" if one else weights.upper())
    for key, field in before.fields.items():
        if not key.startswith("GGUF.") and key != "general.file_type":
            assert after.fields[key].contents() == field.contents(), key
            assert after.fields[key].types == field.types
    assert after.fields["general.file_type"].contents() == {"f16": 1, "q8_0": 7}[weights]
    assert told == sorted(told)
    assert told[-1] == 1.0
    written = read_header(tmp_path / "out.gguf")
    assert precision(written) == weights
    assert converted_size(source, weights) == sum(tensor.size for tensor in written.tensors)


def test_the_same_bytes_every_time(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = read_header(make_gguf())
    for name in ("a", "b"):
        convert(source, tmp_path / name, "q8_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_that_q8_0_cannot_hold_become_f16(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = read_header(make_gguf(quantised="F32", width=48))
    kinds = {t.name: t.type.name for t in convert(source, tmp_path / "out.gguf", "q8_0").tensors}
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


def test_values_beyond_f16_become_its_largest(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_tensor("t", np.array([[1e9, -1e9, 1.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(read_header(tmp_path / "in.gguf"), tmp_path / "out.gguf", "f16")
    assert gguf.GGUFReader(tmp_path / "out.gguf").tensors[0].data.tolist() == [[65504.0, -65504.0, 1.0]]


def test_what_cannot_be_converted_is_named(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = read_header(make_gguf())
    with pytest.raises(ConfigError, match=r"weights 'int4'.*valid: f16, q8_0"):
        convert(source, tmp_path / "out.gguf", "int4")


def test_precision_is_that_of_all_tensors(make_gguf: Callable[..., Path]) -> None:
    for quantised, expected in (("F16", "f16"), ("Q8_0", "q8_0"), ("Q4_1", None), ("F32", None)):
        assert precision(read_header(make_gguf(quantised=quantised))) == expected


@pytest.mark.model
def test_the_packaged_model(tmp_path: Path) -> None:
    source = read_header(locate("smollm2", "test").path)
    written = convert(source, tmp_path / "out.gguf", "q8_0")
    assert len(written.tensors) == len(source.tensors) == 272
    assert sum(tensor.size for tensor in written.tensors) == 143_025_408
