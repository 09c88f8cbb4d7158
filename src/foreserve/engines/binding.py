"""Mapped tensors as the parameters of a torch module: none is copied, ties are kept, buffers are private.

"Comes from the checkpoint" does not mean "is only read": many modules write their buffers (running statistics, caches,
scales). So parameters alone are shared, and every buffer is this process's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foreserve.runtime.leases import WeightsError
from foreserve.runtime.safetensors import named

if TYPE_CHECKING:
    import torch
    from torch import nn


class _Place:
    """Where one tensor stands in a module: once, or at several names that are tied."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.slots: dict[str, nn.Module] = {}
        """By full name: the module that has it. The last part of the name is what it is called there."""

    def put(self, value: Any) -> None:
        # By setattr, not into `_parameters`: modules such as nn.LSTM keep a list of their own up by it.
        for name, owner in self.slots.items():
            setattr(owner, _last(name), value)


def bind(
    module: nn.Module,
    names: Iterable[str],
    read: Callable[[str, bool], torch.Tensor],
    prefix: str,
    where: str,
    device: str = "cpu",
) -> None:
    """Let every parameter of `module`, nested ones too, be the tensor `prefix` + its name, and give it own buffers.

    `names` are the tensors that there are; `read(name, guarded)` gives one, without a copy, on `device`. Parameters may
    be on the `meta` device; what is tied stays tied, under whichever of its names it is stored. Persistent buffers are
    copied from the weights, others from what the module has. Parameters are frozen (`requires_grad` is False).

    Raises WeightsError, before anything is changed, that names what is missing, what nobody asks for (under `prefix`),
    what has another shape or dtype, and buffers without a value.
    """
    import torch
    from torch import nn

    stored = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    parameters = _places(module, "named_parameters")
    buffers = _places(module, "named_buffers")
    wrong = _Wrong()
    values: list[tuple[_Place, str | None]] = []
    for place in parameters:
        found = [name for name in place.slots if name in stored]
        wrong.check_stored(place, found, lambda name: read(prefix + name, True))
        values.append((place, found[0] if found else None))
    for place in buffers:
        kept = [name for name, owner in place.slots.items() if _last(name) not in owner._non_persistent_buffers_set]
        found = [name for name in kept if name in stored]
        if kept:
            wrong.check_stored(place, found, lambda name: read(prefix + name, True))
        elif place.tensor.is_meta:
            wrong.empty.extend(place.slots)
        values.append((place, found[0] if found else None))
    known = {name for place, _ in values for name in place.slots}
    wrong.unexpected.extend(sorted(stored - known))
    wrong.tell(where, prefix, module)
    for place, name in values[: len(parameters)]:
        # The packed weights of recurrent layers are read through a pointer that might as well write.
        guarded = not any(isinstance(owner, nn.RNNBase) for owner in place.slots.values())
        place.put(nn.Parameter(read(f"{prefix}{name}", guarded), requires_grad=False))
    with torch.inference_mode(False), torch.no_grad():
        for place, name in values[len(parameters) :]:
            value = place.tensor if name is None else read(prefix + name, True)
            place.put(value.to(device, copy=True))


@contextmanager
def skeleton() -> Iterator[None]:
    """Modules that are made in this have parameters without a value, at no cost, and buffers that are real.

    `torch.device("meta")` leaves buffers without a value too, which no file has when they are not persistent (as the
    frequencies of rotary embeddings): `with skeleton(): model = AutoModel.from_config(config)`, then `bind`.
    """
    from torch import nn
    from torch.overrides import TorchFunctionMode

    class Untouched(TorchFunctionMode):  # type: ignore[misc,unused-ignore]
        """Fresh memory that nobody writes to takes none: so what would initialise a parameter is left out."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, nn.Parameter) and getattr(func, "__name__", "") in _INITIALISERS:
                return target
            return func(*args, **(kwargs or {}))

    with Untouched():
        yield


_INITIALISERS = frozenset(
    (
        "uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_", "xavier_uniform_",
        "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "sparse_", "fill_", "zero_", "copy_",
        "mul_", "add_", "clamp_", "erfinv_", "exponential_",
    )
)  # fmt: skip
"""Functions of torch.nn.init and what they are made of."""


class _Wrong:
    """What keeps a module from being bound."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.empty: list[str] = []
        self.differing: list[str] = []

    def check_stored(self, place: _Place, found: list[str], read: Callable[[str], torch.Tensor]) -> None:
        import torch

        if not found:
            self.missing.append(next(iter(place.slots)))
            return
        first, *others = [(name, read(name)) for name in found]
        name, tensor = first
        for what in ("shape", "dtype"):
            mine, theirs = getattr(place.tensor, what), getattr(tensor, what)
            if mine != theirs:
                shown = (tuple(theirs), tuple(mine)) if what == "shape" else (theirs, mine)
                self.differing.append(f"{what} of {name} is {shown[0]}, the module's is {shown[1]}")
                return
        for other, value in others:
            if not torch.equal(_bytes(tensor), _bytes(value)):
                self.differing.append(f"{name} and {other} differ, and the module has one for both")

    def tell(self, where: str, prefix: str, module: nn.Module) -> None:
        lists = {"missing": self.missing, "unexpected": self.unexpected}
        words = [f"{what}: {named(names)}" for what, names in lists.items() if names]
        words += [named(self.differing)] if self.differing else []
        if self.empty:
            words.append(
                f"buffers without a value, which no file has: {named(self.empty)}; "
                "make the module within `foreserve.engines.binding.skeleton()` in place of the meta device"
            )
        if words:
            under = f" (names under {prefix!r})" if prefix else ""
            raise WeightsError(f"{where} do not fit {type(module).__name__}{under}: {'; '.join(words)}")


def _places(module: nn.Module, walk: str) -> list[_Place]:
    """Each distinct tensor once, with all its names."""
    places: dict[int, _Place] = {}
    for name, tensor in getattr(module, walk)(remove_duplicate=False):
        place = places.setdefault(id(tensor), _Place(tensor))
        place.slots[name] = module.get_submodule(name.rpartition(".")[0])
    return list(places.values())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.reshape(-1).view(torch.uint8)
