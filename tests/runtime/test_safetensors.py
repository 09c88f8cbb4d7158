import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.runtime.safetensors import DTYPES, MAX_HEADER_BYTES, NotSafetensors, arranged, named, parse


def image(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_where_each_tensor_is():
    data = bytes(range(12))
    whole = image(
        {"b": tensor("U8", (4,), (8, 12)), "a": tensor(shape=(2, 1), offsets=(0, 8)), "__metadata__": {}}, data
    )
    layout = parse(whole, "x")
    assert list(layout) == ["a", "b"]  # in the order of the data
    assert layout["a"].shape == (2, 1)
    assert bytes(whole[layout["b"].begin : layout["b"].end]) == data[8:]


def test_a_file_of_the_formats_own_library(tmp_path):
    numpy, saved = pytest.importorskip("numpy"), pytest.importorskip("safetensors.numpy")
    arrays = {"w": numpy.arange(6, dtype="float32").reshape(2, 3), "n": numpy.array(3), "none": numpy.zeros((0, 4))}
    saved.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    whole = (tmp_path / "a.safetensors").read_bytes()
    layout = parse(memoryview(whole), "x")
    assert {name: each.shape for name, each in layout.items()} == {"w": (2, 3), "n": (), "none": (0, 4)}
    assert whole[layout["w"].begin : layout["w"].end] == arrays["w"].tobytes()


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (memoryview(b"1234567"), "it has 7 bytes"),
        (image({}, length=100), "or not all of it is there"),
        (image({}, length=MAX_HEADER_BYTES + 1), f"at most {MAX_HEADER_BYTES} are read"),
        (image({}, length=2**64 - 1), "its header would have 18446744073709551615 bytes"),
        (image(b"\xff\xff"), "its header cannot be read"),
        (image(b"{"), "its header cannot be read"),
        (image(b"[" * 100_000), "its header cannot be read"),
        (image(b"[]"), "no JSON object"),
        (image(b'{"a": 1, "a": 2}'), "a name is there twice"),
        (image({"a": 1}), "must have dtype, shape and data_offsets"),
        (image({"a": tensor(more=1)}, bytes(4)), "and nothing else"),
        (image({"a": tensor("F31")}, bytes(4)), "dtype 'F31'; valid: BOOL, U8"),
        (image({"a": tensor(["F32"])}, bytes(4)), "dtype"),
        (image({"a": tensor(shape=[-1])}, bytes(4)), "numbers from 0 on"),
        (image({"a": tensor(shape=[True])}, bytes(4)), "numbers from 0 on"),
        (image({"a": tensor(offsets=[0.0, 4])}, bytes(4)), "numbers from 0 on"),
        (image({"a": tensor(offsets=[0, 4, 8])}, bytes(4)), "numbers from 0 on"),
        (image({"a": tensor(offsets=[4, 0])}, bytes(4)), "its place has -4"),
        (image({"a": tensor(shape=[2])}, bytes(4)), "takes 8 bytes; its place has 4"),
        (image({"a": tensor(shape=[10**30])}, bytes(4)), "its place has 4"),
        (image({"a": tensor()}, bytes(3)), "reaches beyond 'the end'"),
        (image({"a": tensor()}, bytes(5)), "the 1 bytes between 'a' and 'the end' belong to no tensor"),
        (image({"a": tensor(), "b": tensor(offsets=(2, 6))}, bytes(6)), "'a', to byte .* overlaps 'b'"),
        (image({"a": tensor(), "b": tensor(offsets=(8, 12))}, bytes(12)), "the 4 bytes between 'a' and 'b'"),
    ],
)  # fmt: skip
def test_what_is_not_exactly_so_is_refused_in_words(whole, words):
    with pytest.raises(NotSafetensors, match=words) as told:
        parse(whole, "/x/weights.safetensors")
    assert "/x/weights.safetensors" in str(told.value)


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_being_refused(data):
    try:
        parse(memoryview(data), "x")
    except NotSafetensors:
        pass


shapes = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3).map(tuple))
names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(names, shapes, max_size=8))
def test_what_is_arranged_is_read_back_and_aligned(tensors):
    head, places = arranged(tensors, "x")
    end = max((each.end for each in places.values()), default=len(head))
    assert len(head) % 64 == 0
    assert parse(memoryview(head + bytes(end - len(head))), "x") == places
    assert {name: (each.dtype, each.shape) for name, each in places.items()} == tensors
    assert all(each.begin % DTYPES[each.dtype] == 0 for each in places.values())


def test_what_the_format_lacks_is_not_arranged():
    with pytest.raises(NotSafetensors, match="'a' has dtype F4; valid: BOOL"):
        arranged({"a": ("F4", (2,))}, "x")
    with pytest.raises(NotSafetensors, match="__metadata__"):
        arranged({"__metadata__": ("F32", (2,))}, "x")


def test_names_in_words():
    assert named(["a", "b"]) == "a, b"
    assert named(list("abcdefg")) == "a, b, c, d, e and 2 more"
