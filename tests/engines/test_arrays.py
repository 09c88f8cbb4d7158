import io

import pytest

from foreserve.engines.arrays import write_image
from foreserve.errors import EngineStartError
from foreserve.runtime.safetensors import parse

numpy = pytest.importorskip("numpy")


def written(arrays):
    file, asked = io.BytesIO(), []
    write_image(file, arrays, "x:load", asked.append)
    image = memoryview(file.getvalue())
    assert asked == [len(image)]
    layout = parse(image, "x")
    return {name: (each.dtype, each.shape, bytes(image[each.begin : each.end])) for name, each in layout.items()}


def test_arrays_of_any_order_and_shape():
    whole = numpy.arange(12, dtype="int32").reshape(3, 4)
    found = written(
        {"rows": whole, "columns": whole.T, "part": whole[::2, 1], "big": whole.astype(">i4"), "one": numpy.int32(7),
         "none": whole[:0], "fortran": numpy.asfortranarray(whole), "yes": whole > 5}
    )  # fmt: skip
    assert found["rows"] == found["big"] == found["fortran"] == ("I32", (3, 4), whole.tobytes())
    assert found["columns"] == ("I32", (4, 3), numpy.ascontiguousarray(whole.T).tobytes())
    assert found["part"] == ("I32", (2,), numpy.array([1, 9], "int32").tobytes())
    assert found["one"] == ("I32", (), numpy.int32(7).tobytes())
    assert found["none"] == ("I32", (0, 4), b"")
    assert found["yes"] == ("BOOL", (3, 4), bytes(6) + bytes([1] * 6))


def test_tensors():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    found = written({"w": weight, "t": torch.arange(6).reshape(2, 3).T, "f8": torch.ones(2).to(torch.float8_e4m3fn)})
    assert found["w"] == ("BF16", (2, 3), bytes.fromhex("803f") * 6)
    assert found["t"] == ("I64", (3, 2), numpy.array([0, 3, 1, 4, 2, 5]).tobytes())
    assert found["f8"] == ("F8_E4M3", (2,), bytes.fromhex("3838"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "x:load returned NoneType; valid: a mapping"),
        ({"a": [1, 2]}, "x:load: 'a' is list; valid: an array of numpy"),
        ({"a": numpy.array([object()])}, "x:load: 'a' has dtype object; valid: bool"),
        ({2: numpy.ones(1)}, "an array called 2"),
    ],
)
def test_what_is_none_is_named(arrays, words):
    with pytest.raises(EngineStartError, match=words):
        written(arrays)
