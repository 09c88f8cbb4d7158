"""`foreserve.weights`: the read-only data of the function that runs here."""

from __future__ import annotations

from foreserve.engines.weights import Weights
from foreserve.runtime import leases


def weights(name: str = "weights") -> Weights:
    """The weights that the function declares under this name; those that have none of their own are `"weights"`.

    Returns at once: they are waited for where a tensor is first asked for. Raises EngineStartError for a name that the
    function did not declare.
    """
    return Weights(leases.get(name))
