"""How much memory one forward pass takes beside the weights: the most that its tensors held at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of whatever operations make, until nobody holds it any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._made(each.untyped_storage(), given)
        self.peak = max(self.peak, self.held)
        return out

    def _made(self, storage: Any, given: set[int]) -> None:
        # A view, or what was changed in place, holds nothing of its own.
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.held += size
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """Of what `run` computes in this thread; inputs that are there already do not count, nor what kernels use inside.

    On a CUDA device it is what the allocator says, kernels' own memory included.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    with _Counting() as counting:
        run()
    return int(counting.peak)
