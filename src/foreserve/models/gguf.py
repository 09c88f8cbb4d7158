"""A GGUF file in another precision: every field and tensor as it was, the weights as f16 or Q8_0.

OpenVINO's GGUF reader degrades 4- and 5-bit files, so they are turned into f16 or Q8_0 once. The quality stays that
of the source's weights. Byte-identical from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType, quants

from foreserve.errors import ConfigError
from foreserve.models.gguf_file import Field, Header, Tensor, read_header

VERSION: Final = 1
"""Part of a converted file's cache key; raise it when the output changes."""

Progress = Callable[[float, str], None]

TARGETS: Final = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_CHUNK_ELEMENTS: Final = 4 * 2**20
"""Rows are converted so many elements at a time, which bounds memory by one tensor in its target form."""


def precision(header: Header) -> str | None:
    """The target whose form the file already has (`f16`, `q8_0`), or `None`."""
    for name in TARGETS:
        if all(tensor.type is _target(tensor, name) for tensor in header.tensors):
            return name
    return None


def converted_size(header: Header, weights: str) -> int:
    """Bytes of the tensors once converted."""
    return sum(_size(tensor, _target(tensor, weights)) for tensor in header.tensors)


def convert(header: Header, target: Path, weights: str, progress: Progress | None = None) -> Header:
    """Write the file of `header` to `target` with its weights in `weights` (`f16` or `q8_0`), and read that back.

    `progress(done, what)` is called with `done` from 0 to 1. Raises ConfigError where a tensor's type cannot be read.
    """
    if weights not in TARGETS:
        raise ConfigError(f"weights {weights!r}: a GGUF file cannot be turned into that; valid: {', '.join(TARGETS)}")
    writer = GGUFWriter(target, header.text("general.architecture"))
    for key, field in header.fields.items():
        _copy(writer, key, field)
    writer.add_file_type(int(TARGETS[weights][1]))
    for tensor in header.tensors:
        kind = _target(tensor, weights)
        writer.add_tensor_info(tensor.name, *_layout(tensor, kind), _size(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data = np.memmap(header.path, dtype=np.uint8, mode="r")
    total, done = sum(tensor.elements for tensor in header.tensors), 0
    for tensor in header.tensors:
        writer.write_tensor_data(_converted(header, tensor, data, _target(tensor, weights)))
        done += tensor.elements
        if progress:
            progress(done / total, f"converting to {weights}")
    writer.close()
    return _checked(header, read_header(target))


def _copy(writer: GGUFWriter, key: str, field: Field) -> None:
    if key in ("general.architecture", "general.file_type"):
        return  # the writer has stored the one; the other is what changes
    if field.item_type is None:
        writer.add_key_value(key, field.value, GGUFValueType(field.type))
        return
    items = field.value if isinstance(field.value, list) else field.value.tolist()
    if items:  # the writer knows no empty arrays; to readers a missing one is the same
        writer.add_key_value(key, items, GGUFValueType.ARRAY, GGUFValueType(field.item_type))


def _target(tensor: Tensor, weights: str) -> Any:
    """Norms and biases stay F32; rows that Q8_0 cannot divide into its blocks become F16."""
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    kind = TARGETS[weights][0]
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _size(tensor: Tensor, kind: Any) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return tensor.elements // int(block) * int(block_bytes)


def _layout(tensor: Tensor, kind: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and numpy type as the writer wants them: quantised tensors as bytes."""
    if kind is GGMLQuantizationType.F32:
        return tensor.shape, np.dtype(np.float32)
    if kind is GGMLQuantizationType.F16:
        return tensor.shape, np.dtype(np.float16)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return (*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes), np.dtype(np.uint8)


def _converted(header: Header, tensor: Tensor, data: Any, kind: Any) -> Any:
    raw = data[tensor.offset : tensor.offset + tensor.size]
    shape, dtype = _layout(tensor, kind)
    if tensor.type is kind:
        return raw.view(dtype).reshape(shape)
    columns = tensor.shape[-1]
    rows = tensor.elements // columns
    source = raw.reshape(rows, -1)
    out = np.empty((rows, shape[-1]), dtype=dtype)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for row in range(0, rows, step):
        try:
            plain = quants.dequantize(source[row : row + step], tensor.type)
        except NotImplementedError:
            raise ConfigError(f"{header.path}: tensors of type {tensor.type.name} cannot be converted") from None
        # Beyond f16's range only in files that are damaged; the largest f16 rather than infinity then.
        if kind is GGMLQuantizationType.F16:
            plain = np.clip(plain, -65504.0, 65504.0)
        out[row : row + step] = quants.quantize(plain, kind)
    return out.reshape(shape)


def _checked(source: Header, written: Header) -> Header:
    """The written file, known to hold what the source holds."""
    shapes = [[(tensor.name, tensor.shape) for tensor in header.tensors] for header in (source, written)]
    lost = [key for key, field in source.fields.items() if key not in written.fields and _items(field)]
    if shapes[0] != shapes[1] or lost:
        raise ConfigError(f"{source.path}: converting it lost {', '.join(lost[:8]) or 'tensors'}")
    return written


def _items(field: Field) -> int:
    """Items of an array field; 1 for a single value."""
    return 1 if field.item_type is None else len(field.value)
