"""Requests and replies of the Open Inference Protocol as bytes: JSON, and behind it the raw data of tensors.

With the binary data extension a body is JSON of `Inference-Header-Content-Length` bytes, then the raw elements of each
tensor that has `binary_data_size` among its parameters, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from foreserve.calling import Output
from foreserve.errors import BadRequest, EngineFailed
from foreserve.gateway.decoding import Decoder
from foreserve.tensors import SIZES, Tensor, array, elements_of, packed, shape_fault

HEADER_LENGTH = "inference-header-content-length"

Parameters = dict[str, Any]


class InputBody(msgspec.Struct, frozen=True, kw_only=True):
    """One input tensor. `data` is nested or flat, and left out where raw data follows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    parameters: Parameters = {}


class OutputBody(msgspec.Struct, frozen=True, kw_only=True):
    """An output that is asked for."""

    name: str
    parameters: Parameters = {}


class InferBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v2/models/NAME/infer`. Without `outputs` all are given."""

    inputs: list[InputBody]
    id: str = ""
    outputs: list[OutputBody] = []
    parameters: Parameters = {}


class OutputReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One output tensor: with its data, or the size of the raw data that follows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters = {}
    data: Any = None


class InferReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reply to `InferBody`."""

    model_name: str
    outputs: list[OutputReply]
    id: str = ""
    parameters: Parameters = {}


_bodies = Decoder(InferBody)
_INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")


def decode(raw: bytes, header_length: str | None) -> tuple[InferBody, dict[str, Tensor]]:
    """A body and its input tensors by name. Raises BadRequest naming the tensor that is wrong."""
    size = len(raw)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(raw):
            words = f"`Inference-Header-Content-Length` is {header_length[:32]!r}; the body has {len(raw)} bytes"
            raise BadRequest(words)
        size = int(header_length)
    body = _bodies.decode(raw[:size])
    tensors: dict[str, Tensor] = {}
    at = size
    for given in body.inputs:
        if given.name in tensors:
            raise _wrong(given, "there are two of this name")
        if (fault := shape_fault(given.datatype, given.shape)) is not None:
            raise _wrong(given, fault)
        binary = given.parameters.get("binary_data_size")
        if binary is None:
            tensors[given.name] = _from_json(given)
            continue
        if not isinstance(binary, int) or isinstance(binary, bool) or binary < 0 or given.data is not None:
            raise _wrong(given, "`binary_data_size` is a number of bytes, in place of `data`")
        if at + binary > len(raw):
            raise _wrong(given, f"{binary} bytes of raw data are announced, and {len(raw) - at} are left of the body")
        tensor = Tensor(given.datatype, given.shape, raw[at : at + binary])
        at += binary
        if (fault := tensor.fault()) is not None:
            raise _wrong(given, fault)
        tensors[given.name] = tensor
    if at != len(raw):
        raise BadRequest(f"{len(raw) - at} bytes of raw data belong to no input; `binary_data_size` tells how many do")
    return body, tensors


def _wrong(given: InputBody, words: str) -> BadRequest:
    return BadRequest(f"input {given.name[:64]!r}: {words}", param=f"inputs.{given.name[:64]}")


def _from_json(given: InputBody) -> Tensor:
    """Its data, nested or flat, as raw elements."""
    import numpy as np

    if given.data is None:
        raise _wrong(given, "it has neither `data` nor `binary_data_size`")
    flat = list(_flat(given.data))
    kind: Any = int if given.datatype in _INTEGERS else bool if given.datatype == "BOOL" else float
    kind = str if given.datatype == "BYTES" else kind
    try:
        flat = msgspec.convert(flat, list[kind])
    except msgspec.ValidationError as error:
        said = str(error).partition(" - at ")[0].replace("`", "")
        raise _wrong(given, f"{given.datatype} data: {said[:1].lower() + said[1:]}") from None
    if given.datatype == "BYTES":
        data = packed([text.encode() for text in flat])
    else:
        try:
            data = _packed_numbers(np, flat, given.datatype)
        except OverflowError:
            raise _wrong(given, f"a number is out of the range of {given.datatype}") from None
    tensor = Tensor(given.datatype, given.shape, data)
    if len(flat) != tensor.elements:
        words = f"{len(flat)} elements of data; the shape {list(given.shape)} has {tensor.elements}"
        raise _wrong(given, words)
    return tensor


def _packed_numbers(np: Any, flat: list[Any], datatype: str) -> bytes:
    """Raises OverflowError for a number that the datatype does not hold."""
    if datatype == "BF16":  # the upper half of a float32, rounded to even
        bits = np.array(flat, "<f4").view("<u4").astype("<u8")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    dtype = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}.get(datatype)
    if dtype is None:
        dtype = f"<{'u' if datatype.startswith('U') else 'i'}{SIZES[datatype]}"
        return bytes(np.array(flat, dtype).tobytes())
    with np.errstate(over="ignore"):
        return bytes(np.array(flat, dtype).tobytes())


def _flat(data: Any) -> Iterable[Any]:
    if isinstance(data, list):
        for each in data:
            yield from _flat(each)
    else:
        yield data


# --- the reply


def encode(
    model: str, body: InferBody, outputs: Sequence[Output], parameters: Parameters | None = None
) -> tuple[bytes, int | None]:
    """The reply's bytes, and how many of them are JSON where raw data follows. `parameters` are the reply's own.

    Raises BadRequest for an output that is asked for and not there, or that JSON cannot tell; EngineFailed for a result
    that has two outputs of one name.
    """
    there = {output.name: output.tensor for output in outputs}
    if len(there) != len(outputs):
        raise EngineFailed("the result has two outputs of one name")
    asked = body.outputs or [OutputBody(name=name) for name in there]
    replies: list[OutputReply] = []
    data: list[bytes] = []
    for each in asked:
        tensor = there.get(each.name)
        if tensor is None:
            words = f"there is no output {each.name[:64]!r}; there are: {', '.join(there) or 'none'}"
            raise BadRequest(words, param=f"outputs.{each.name[:64]}")
        binary = each.parameters.get("binary_data", body.parameters.get("binary_data_output", False))
        if binary is True:
            data.append(tensor.data)
        replies.append(_reply(each.name, tensor, binary=binary is True))
    head = msgspec.json.encode(InferReply(model_name=model, outputs=replies, id=body.id, parameters=parameters or {}))
    return head + b"".join(data), len(head) if data else None


def _reply(name: str, tensor: Tensor, *, binary: bool) -> OutputReply:
    words: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
    if binary:
        return OutputReply(**words, parameters={"binary_data_size": len(tensor.data)})
    if tensor.datatype != "BYTES":
        return OutputReply(**words, data=array(tensor).ravel().tolist())
    try:
        return OutputReply(**words, data=[element.decode() for element in elements_of(tensor.data)])
    except UnicodeDecodeError:
        raise BadRequest(
            f"output {name!r} has bytes that are no text, which JSON cannot tell; ask for its `binary_data`",
            param=f"outputs.{name}",
        ) from None
