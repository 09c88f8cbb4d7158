"""Columns of Arrow as arrays of numbers, from a file or from a client."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreserve.errors import BadRequest, ConfigError


def arrow_column(column: Any, where: str) -> NDArray[Any]:
    """An Arrow array as rows of numbers: lists, all of one length, become columns. Raises ConfigError."""
    import pyarrow
    import pyarrow.compute

    if column.null_count:
        raise ConfigError(f"{where}: a value is missing")
    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        width = len(flat) // len(column) if len(column) else 0
        lengths = pyarrow.compute.list_value_length(column).unique()
        if len(lengths) > 1 or flat.dtype.kind not in "fiu":
            raise ConfigError(f"{where}: rows must be lists of numbers of one length")
        rows: NDArray[Any] = flat.reshape(len(column), width)
        return rows
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiu":
        raise ConfigError(f"{where}: it holds {kind}; valid: numbers")
    return values


def arrow_stream(raw: bytes) -> dict[str, NDArray[Any]]:
    """The columns of an Arrow IPC stream. Raises BadRequest for what is none, or holds other than numbers."""
    import pyarrow

    try:
        table = pyarrow.ipc.open_stream(raw).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise BadRequest(f"the body is no Arrow stream: {error}") from None
    try:
        return {
            name: np.asarray(arrow_column(table.column(name).combine_chunks(), name)) for name in table.column_names
        }
    except ConfigError as error:
        raise BadRequest(str(error)) from None
