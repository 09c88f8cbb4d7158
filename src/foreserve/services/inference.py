"""What a kind brings for the Open Inference Protocol: its tensors, a payload made of them, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from foreserve.calling import Output
from foreserve.tensors import Tensor

ANY = "ANY"
"""The datatype of a tensor that may be of any, or of which that is not known."""


class ModelTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that a model takes or gives. A size of -1 in `shape` may be any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@runtime_checkable
class Infers(Protocol):
    """A kind of which tensors can be asked. `platform` is what runs it, for people."""

    @property
    def platform(self) -> str: ...
    @property
    def streams(self) -> bool:
        """Whether it gives several answers, which the protocol has no way for."""
        ...

    def model_inputs(self) -> Sequence[ModelTensor]:
        """As far as they are known."""
        ...

    def model_outputs(self) -> Sequence[ModelTensor]:
        """As far as they are known."""
        ...

    def infer(self, tensors: Mapping[str, Tensor]) -> Any:
        """The payload of a request with these inputs. Raises BadRequest naming the one that does not fit."""
        ...

    def inferred(self, events: Sequence[Any]) -> Sequence[Output]:
        """The outputs, of all events of such a request."""
        ...


@runtime_checkable
class InfersOnTerms(Infers, Protocol):
    """One whose answers depend on more than the inputs, by the `parameters` of a request, and which tells how."""

    def on_terms(self, payload: Any, parameters: Mapping[str, Any]) -> Any:
        """What `Request.about` is to be. Raises BadRequest naming the parameter that does not fit."""
        ...

    def told(self, events: Sequence[Any]) -> dict[str, Any]:
        """The `parameters` of the reply."""
        ...
