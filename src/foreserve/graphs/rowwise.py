"""Which functions of torch work row by row, so that rows of some nodes can be computed without the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ELEMENTWISE = {
    "add",
    "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "pow", "neg", "negative", "abs",
    "exp",
    "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "reciprocal", "sign", "sin", "cos", "tan", "tanh",
    "sigmoid", "erf", "floor", "ceil", "round", "clamp", "clip", "clamp_min", "clamp_max", "where", "masked_fill",
    "maximum", "minimum", "fmod", "remainder", "lerp", "addcmul", "addcdiv", "atan2", "nan_to_num", "isnan", "isinf",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or",
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__div__",
    "__rdiv__", "__pow__", "__rpow__", "__neg__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
    "__and__", "__or__", "__invert__",
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "hardtanh",
    "hardswish",
    "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "logsigmoid", "prelu", "log_sigmoid",
    "rms_norm", "layer_norm", "batch_norm", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "zeros_like", "ones_like", "full_like",
    "clone", "contiguous", "detach", "to", "float", "double", "type_as", "positive",
}  # fmt: skip
"""Of equal or broadcast shapes. Norms over trailing dimensions count here too; `fault` looks at what else they take."""

_PRODUCTS = {"linear", "matmul", "mm", "__matmul__", "addmm", "embedding", "bilinear"}
_ALONG = {
    "softmax", "log_softmax", "softmin", "sum", "mean", "prod", "amax", "amin", "max", "min", "norm", "std", "var",
    "normalize", "cumsum", "logsumexp", "argmax", "argmin", "all", "any", "glu", "cosine_similarity", "sort", "topk",
    "vector_norm", "linalg_vector_norm", "flip", "roll", "unbind",
}  # fmt: skip
"""Along one dimension, which must not be that of the nodes."""

_SHAPING = {
    "cat", "concat", "stack", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "chunk", "split",
    "__getitem__", "transpose", "permute", "expand", "expand_as", "repeat", "narrow", "select", "index_select",
}  # fmt: skip


def out_of_place(func: Any, name: str, kwargs: dict[str, Any]) -> tuple[Any, bool, dict[str, Any]]:
    """The function that returns what `func` would write into its first argument; whether `func` writes.

    A run must not change rows that others read.
    """
    if kwargs.get("inplace"):
        return func, True, {**kwargs, "inplace": False}
    if name.startswith("__i") and name.endswith("__") and hasattr(Tensor, f"__{name[3:]}"):
        return getattr(Tensor, f"__{name[3:]}"), True, kwargs
    if name.endswith("_") and not name.startswith("_"):
        for home in (Tensor, torch, torch.nn.functional):
            if hasattr(home, name[:-1]):
                return getattr(home, name[:-1]), True, kwargs
    return func, False, kwargs


def fault(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], made: Any, recorded: Sequence[Tensor], stacked: bool
) -> str | None:
    """Why a call does not work row by row, in words; `None` where it does.

    `recorded` are its arguments with a row for each node, in dimension 0, or 1 if `stacked`; `made` is its result.
    """
    base = name.rstrip("_") if not name.startswith("__") else name
    if base.startswith("__i") and base not in _ELEMENTWISE:
        base = f"__{base[3:]}"
    nodes = recorded[0].shape[1 if recorded[0].stacked else 0]  # type: ignore[attr-defined]
    if base in _ELEMENTWISE:
        wrong = _elementwise(base, args, kwargs, recorded, nodes)
    elif base in _PRODUCTS:
        first = 1 if base == "addmm" else 0
        wrong = None
        if not _is_recorded(args[first] if len(args) > first else kwargs.get("input")):
            wrong = "multiplies the nodes from the left, which mixes them"
        elif any(_is_recorded(each) for each in args[first + 1 :]) or base == "bilinear":
            wrong = "multiplies rows of nodes with one another"
    elif base in _ALONG:
        wrong = _along(base, args, kwargs, recorded, stacked)
    elif base in _SHAPING:
        wrong = _shaping(base, args, kwargs, recorded, stacked)
    else:
        return "is not known to work row by row; valid: functions of one node's own row"
    if wrong is None and any(part.dim() == 0 or nodes not in part.shape[:2] for part in _tensors(made)):
        wrong = "does not keep a row for each node"
    return wrong


def _elementwise(
    base: str, args: Sequence[Any], kwargs: dict[str, Any], recorded: Sequence[Tensor], nodes: int
) -> str | None:
    if base in ("batch_norm", "dropout", "alpha_dropout", "feature_alpha_dropout"):
        at = {"batch_norm": 5, "dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2}[base]
        training = args[at] if len(args) > at else kwargs.get("training", base != "batch_norm")
        return "is in training" if training else None
    if base == "layer_norm":
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        return "normalises over all nodes" if len(shape) >= recorded[0].dim() else None
    widest = max(each.dim() for each in recorded)
    for each in [*args, *kwargs.values()]:
        if isinstance(each, Tensor) and not _is_recorded(each) and each.dim() >= widest and each.shape[-widest] != 1:
            return "takes a constant with a row for each node"
        if _is_recorded(each) and each.dim() != widest and each.dim() != 0:
            return "takes rows of different dimensions, which would be matched from the right"
    return None


def _along(
    base: str, args: Sequence[Any], kwargs: dict[str, Any], recorded: Sequence[Tensor], stacked: bool
) -> str | None:
    place = {"normalize": 2, "norm": 2, "vector_norm": 2, "linalg_vector_norm": 2, "cosine_similarity": 2, "topk": 2}
    default = {"normalize": 1, "unbind": 0, "sort": -1, "topk": -1, "glu": -1, "cosine_similarity": 1}.get(base)
    at = place.get(base, 1)
    dim = kwargs.get("dim", args[at] if len(args) > at else default)
    if isinstance(dim, Tensor):  # an elementwise maximum
        return _elementwise("maximum", args, kwargs, recorded, 0)
    if dim is None:
        return "goes over all nodes; valid: a dimension of a node's own row"
    dims = [dim] if isinstance(dim, int) else list(dim)
    rank = recorded[0].dim()
    return "goes over the nodes" if any(each % rank == (1 if stacked else 0) for each in dims) else None


def _shaping(
    base: str, args: Sequence[Any], kwargs: dict[str, Any], recorded: Sequence[Tensor], stacked: bool
) -> str | None:
    rank = recorded[0].dim()
    over = "goes over the nodes"
    if stacked and base not in ("stack",):
        return "reshapes stacked rows"
    if base in ("cat", "concat"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        parts = args[0] if args else kwargs["tensors"]
        if not all(_is_recorded(each) for each in parts):
            return "takes a constant with a row for each node"
        return over if dim % rank == 0 else None
    if base == "stack":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        parts = args[0] if args else kwargs["tensors"]
        if not all(_is_recorded(each) for each in parts):
            return "takes a constant with a row for each node"
        return "stacks what is stacked" if stacked else None
    if base in ("view", "reshape", "expand"):
        return None  # that the rows are still there is all it takes
    if base == "repeat":
        sizes = list(args[1]) if len(args) == 2 and isinstance(args[1], (tuple, list)) else list(args[1:])
        return None if len(sizes) == rank and sizes[0] == 1 else over
    if base == "flatten":
        start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
        return over if start % rank == 0 else None
    if base == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        whole = index and (index[0] is Ellipsis or (isinstance(index[0], slice) and index[0] == slice(None)))
        if index and index[0] is Ellipsis and len(index) > rank:
            whole = False
        return None if whole and not any(isinstance(each, Tensor) for each in index) else "picks some of the nodes"
    if base in ("transpose", "permute"):
        dims = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if base == "transpose":
            return over if any(each % rank == 0 for each in dims) else None
        return None if dims and dims[0] == 0 else over
    if base == "expand_as":
        return None
    default = 0 if base in ("chunk", "split") else None
    at = 2 if base in ("chunk", "split") else 1
    dim = kwargs.get("dim", args[at] if len(args) > at else default)
    if dim is None:
        return over
    size = rank + 1 if base == "unsqueeze" else rank
    return over if any(each % size == 0 for each in ([dim] if isinstance(dim, int) else dim)) else None


def _is_recorded(each: Any) -> bool:
    return hasattr(each, "recorder") and hasattr(each, "value")


def _tensors(made: Any) -> list[Tensor]:
    parts = made if isinstance(made, (tuple, list)) else [made]
    return [part for part in parts if isinstance(part, Tensor)]
