"""What reaches an encoder's worker and what comes back. Needs no torch."""

from __future__ import annotations

import msgspec

from foreserve.tensors import Tensor


class Encode(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of one request: token ids (of a pair with `types`, 0 or 1 for each), or an image.

    An image is a file as it is (`image`: JPEG, PNG, …) or bytes `[height, width, 3]` (`pixels`). With a `task` its head
    answers, without the answer is the embedding; of a cross-encoder the score.
    """

    ids: list[int] = []
    types: list[int] = []
    image: bytes = b""
    pixels: Tensor | None = None
    task: str = ""


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: numbers as float32, little-endian, and the token setting that made them."""

    data: bytes
    setting: str


class Encoding(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as its caller gets it. `expected` is how accurate it is expected to be, as the request's plans tell."""

    data: bytes
    setting: str
    expected: float
    tokens: int


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A task as its folder tells it (`task.json`): a head on a frozen encoder, and prompts for it.

    `accuracy` has the share of held-out inputs that are answered rightly, by setting; `kept` are those settings that
    no other is both as fast as and as accurate as. `model` names the encoder that it was trained on, `pooling` what the
    head sees: `cls` or `mean`.
    """

    name: str
    labels: list[str]
    model: str
    width: int
    pooling: str
    accuracy: dict[str, float]
    kept: list[str]
    prompts: list[int] = []
    held_out: int = 0
    seconds: dict[str, float] = {}
    notes: dict[str, str] = {}
