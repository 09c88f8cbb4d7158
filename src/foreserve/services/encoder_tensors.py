"""An encoder's requests and answers as tensors of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foreserve.calling import Output
from foreserve.elastic.payload import Encode
from foreserve.errors import BadRequest
from foreserve.registry import choices
from foreserve.services.inference import ModelTensor
from foreserve.tensors import Tensor, elements_of, packed

_TASK = ModelTensor(name="task", datatype="BYTES", shape=(1,))
TEXT_INPUTS = [ModelTensor(name="text", datatype="BYTES", shape=(1,)), _TASK]
IMAGE_INPUTS = [
    ModelTensor(name="image", datatype="BYTES", shape=(1,)),
    ModelTensor(name="pixels", datatype="UINT8", shape=(-1, -1, 3)),
    _TASK,
]


def outputs(width: int) -> list[ModelTensor]:
    """All that there may be."""
    return [
        ModelTensor(name="probabilities", datatype="FP32", shape=(-1,)),
        ModelTensor(name="label", datatype="BYTES", shape=(1,)),
        ModelTensor(name="embedding", datatype="FP32", shape=(width,)),
    ]


def check_names(tensors: Mapping[str, Tensor], inputs: Sequence[ModelTensor]) -> None:
    """Raises BadRequest for an input that there is not."""
    known = [each.name for each in inputs]
    for name in tensors:
        if name not in known:
            words = f"no input is called {name[:64]!r}; valid: {', '.join(known)}"
            raise BadRequest(words, param=f"inputs.{name[:64]}")


def text(tensors: Mapping[str, Tensor]) -> str:
    """The input `text`. Raises BadRequest."""
    try:
        return _one(tensors, "text").decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"`text` is not UTF-8 at byte {error.start}", param="inputs.text") from None


def image(tensors: Mapping[str, Tensor]) -> Encode:
    """A payload of the input `image` or `pixels`. Raises BadRequest."""
    if ("image" in tensors) == ("pixels" in tensors):
        raise BadRequest("one of the inputs `image` and `pixels` is wanted", param="inputs")
    if "image" in tensors:
        return Encode(image=_one(tensors, "image"))
    pixels = tensors["pixels"]
    if pixels.datatype != "UINT8" or len(pixels.shape) != 3 or pixels.shape[2] != 3 or not pixels.elements:
        shape = f"{pixels.datatype} {list(pixels.shape)}"
        raise BadRequest(f"`pixels` is {shape}; valid: UINT8 [height, width, 3]", param="inputs.pixels")
    return Encode(pixels=pixels)


def task_named(tensors: Mapping[str, Tensor], tasks: Sequence[str]) -> str:
    """The task that is meant: the only one where none is named; empty for none. Raises BadRequest."""
    if "task" not in tensors:
        return tasks[0] if len(tasks) == 1 else ""
    found = _one(tensors, "task").decode("utf-8", "replace")
    if found and found not in tasks:
        raise BadRequest(f"no task {found[:64]!r}{choices(found, list(tasks))}", param="inputs.task")
    return found


def answer(data: bytes, labels: Sequence[str] | None) -> list[Output]:
    """The outputs of a task's probabilities, or, without `labels`, of an embedding."""
    count = len(data) // 4
    numbers = Tensor("FP32", (count,), data)
    if labels is None:
        return [Output(name="embedding", tensor=numbers)]
    values = memoryview(data).cast("f").tolist()
    label = labels[max(range(count), key=values.__getitem__)]
    return [
        Output(name="probabilities", tensor=numbers),
        Output(name="label", tensor=Tensor("BYTES", (1,), packed([label.encode()]))),
    ]


def _one(tensors: Mapping[str, Tensor], name: str) -> bytes:
    """The only element of an input of bytes. Raises BadRequest."""
    tensor = tensors.get(name)
    if tensor is None:
        raise BadRequest(f"the input `{name}` is missing", param=f"inputs.{name}")
    found = [*elements_of(tensor.data)] if tensor.datatype == "BYTES" else []
    if len(found) != 1:
        words = f"`{name}` is {tensor.datatype} {list(tensor.shape)}; valid: BYTES [1]"
        raise BadRequest(words, param=f"inputs.{name}")
    return found[0]
