"""GGUF headers: read as the gguf package reads them, and refused where they are hostile or cut off."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from foreserve.errors import ConfigError
from foreserve.models.gguf_file import MAX_STRING_BYTES, read_header

U64_MAX = 2**64 - 1


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def file_of(
    fields: bytes = b"", n_fields: int = 0, tensors: bytes = b"", n_tensors: int = 1, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + fields + tensors


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def array(key: bytes, item: int, count: int) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, item, count)


HOSTILE = {
    "empty": b"",
    "not GGUF": b"PK\x03\x04" + b"\0" * 64,
    "magic alone": b"GGUF",
    "old version": file_of(version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    "no tensors": file_of(n_tensors=0),
    "vast number of fields": file_of(n_fields=U64_MAX),
    "vast number of tensors": file_of(n_tensors=U64_MAX),
    "vast string": file_of(struct.pack("<Q", U64_MAX), 1),
    "string above the bound": file_of(struct.pack("<Q", MAX_STRING_BYTES + 1) + b"x" * (MAX_STRING_BYTES + 8), 1),
    "key not UTF-8": file_of(text(b"\xff\xfe") + struct.pack("<II", 4, 1), 1),
    "unknown field type": file_of(text(b"k") + struct.pack("<I", 77), 1),
    "vast array of bytes": file_of(array(b"k", 0, U64_MAX), 1),
    "large array of bytes": file_of(array(b"k", 0, 3_000_000), 1),
    "vast array of strings": file_of(array(b"k", 8, 3_999_999), 1),
    "array of arrays": file_of(array(b"k", 9, 1) + struct.pack("<IQ", 9, 1) * 1000, 1),
    "array of an unknown type": file_of(array(b"k", 99, 1), 1),
    "field twice": file_of((text(b"k") + struct.pack("<II", 4, 1)) * 2, 2),
    "alignment of zero": file_of(text(b"general.alignment") + struct.pack("<II", 4, 0), 1, tensor()),
    "alignment of three": file_of(text(b"general.alignment") + struct.pack("<II", 4, 3), 1, tensor()),
    "alignment as text": file_of(text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"), 1, tensor()),
    "no dimensions": file_of(tensors=tensor(shape=())),
    "vast number of dimensions": file_of(tensors=text(b"t") + struct.pack("<I", 2**32 - 1)),
    "zero rows": file_of(tensors=tensor(shape=(32, 0)) + b"\0" * 256),
    "shape that overflows": file_of(tensors=tensor(shape=(2**33, 2**33)) + b"\0" * 256),
    "shape that overflows to nothing": file_of(tensors=tensor(shape=(2**32, 2**32)) + b"\0" * 256),
    "unknown tensor type": file_of(tensors=tensor(kind=9999) + b"\0" * 256),
    "rows that are no whole blocks": file_of(tensors=tensor(shape=(33, 2), kind=2) + b"\0" * 256),
    "tensor beyond the file": file_of(tensors=tensor(shape=(2**20,)) + b"\0" * 256),
    "offset beyond the file": file_of(tensors=tensor(offset=U64_MAX) + b"\0" * 256),
    "tensor twice": file_of(tensors=tensor() * 2 + b"\0" * 256, n_tensors=2),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_without_large_allocations(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"model\.gguf: not a"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_STRING_BYTES
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    whole = make_gguf(layers=1).read_bytes()
    header = read_header(tmp_path / "tiny.gguf")
    last = max(tensor.offset + tensor.size for tensor in header.tensors)
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 600, 7), *range(600, last, 1009), last - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ConfigError):
            read_header(cut)
    cut.write_bytes(whole[:last])
    assert len(read_header(cut).tensors) == len(header.tensors)


def test_flipped_bytes_never_raise_anything_else(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    from foreserve.models import facts, gguf_tokenizer

    whole = bytearray(make_gguf(layers=1).read_bytes())
    rng = np.random.default_rng(7)
    path, refused = tmp_path / "flipped.gguf", 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(4, 9000, size=3):
            content[at] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            header = read_header(path)
            facts.from_gguf(header)
            gguf_tokenizer.from_gguf(header)
        except ConfigError:
            refused += 1
    assert refused > 30


def test_it_reads_what_the_gguf_package_reads(make_gguf: Callable[..., Path]) -> None:
    path = make_gguf()
    header, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(header.fields) == list(theirs)
    for key, field in header.fields.items():
        value = field.value.tolist() if isinstance(field.value, np.ndarray) else field.value
        assert value == theirs[key].contents(), key
        assert field.type == theirs[key].types[0]
        assert field.item_type == (theirs[key].types[-1] if len(theirs[key].types) > 1 else None)
    raw = path.read_bytes()
    for ours, tensor in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.type, ours.shape) == (tensor.name, tensor.tensor_type, tuple(reversed(tensor.shape)))
        assert raw[ours.offset : ours.offset + ours.size] == tensor.data.tobytes()


def test_fields_of_the_wrong_type_are_refused_where_they_are_read(make_gguf: Callable[..., Path]) -> None:
    header = read_header(make_gguf())
    for read in (
        lambda: header.text("llama.block_count"),
        lambda: header.integer("general.name"),
        lambda: header.integer("missing"),
        lambda: header.integer("llama.context_length", most=100),
        lambda: header.flag("general.name", True),
        lambda: header.strings("tokenizer.ggml.token_type"),
        lambda: header.numbers("tokenizer.ggml.tokens"),
    ):
        with pytest.raises(ConfigError, match=r"tiny\.gguf: the field "):
            read()
