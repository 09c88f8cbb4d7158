"""Tensors as bytes: sizes that agree, arrays that cannot be written, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foreserve.tensors import DATATYPES, SIZES, Tensor, array, elements_of, packed, tensor_of

NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.unsigned_integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)


@given(st.data())
def test_arrays_go_and_come_back_unchanged(data: st.DataObject):
    made = data.draw(arrays.arrays(data.draw(NUMBERS), arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)))
    tensor = tensor_of(made)
    assert tensor.fault() is None
    back = array(tensor)
    assert (back.dtype, back.shape) == (made.dtype, made.shape)
    assert back.tobytes() == made.tobytes()


@given(st.lists(st.binary()))
def test_bytes_go_and_come_back(elements: list[bytes]):
    tensor = Tensor("BYTES", (len(elements),), packed(elements))
    assert tensor.fault() is None
    assert list(elements_of(tensor.data)) == elements == array(tensor).tolist()


def test_what_becomes_a_tensor():
    assert tensor_of(3) == Tensor("INT64", (1,), (3).to_bytes(8, "little"))
    assert tensor_of([True, False]) == Tensor("BOOL", (2,), b"\x01\x00")
    assert tensor_of(["a", "é"]) == Tensor("BYTES", (2,), packed([b"a", "é".encode()]))
    assert tensor_of(np.arange(4, dtype=">i2")).data == np.arange(4, dtype="<i2").tobytes()
    assert tensor_of(np.zeros((2, 3), "f4")[:, ::2]).shape == (2, 2)
    for wrong in ([[1], [1, 2]], [object()], np.zeros(1, "c8")):
        with pytest.raises(TypeError):
            tensor_of(wrong)


def test_torch_tensors_bfloat16_among_them():
    torch = pytest.importorskip("torch")
    half = tensor_of(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert (half.datatype, half.shape) == ("BF16", (2,))
    assert array(half).tolist() == [1.5, -2.0]
    assert array(half).dtype == np.float32
    assert tensor_of(torch.ones(2, 2, requires_grad=True)).datatype == "FP32"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("FP31", (1,), b""), "valid: BOOL"),
        (Tensor("FP32", (-1,), b""), "negative"),
        (Tensor("FP32", (1,) * 33, b"1234"), "dimensions"),
        (Tensor("FP32", (0, 2**70), b""), "more than"),
        (Tensor("FP32", (2,), b"1234"), r"4 bytes of data; FP32 of shape \[2\] has 2 elements of 4 bytes"),
        (Tensor("BYTES", (2,), packed([b"a"])), r"1 elements of data; the shape \[2\] has 2"),
        (Tensor("BYTES", (1,), b"\x09\x00\x00\x00a"), "ends within an element"),
    ],
)
def test_what_does_not_agree_is_told(tensor: Tensor, words: str):
    import re

    assert re.search(words, tensor.fault() or "")


def test_every_datatype_has_a_size_but_bytes():
    assert set(DATATYPES) - set(SIZES) == {"BYTES"}
