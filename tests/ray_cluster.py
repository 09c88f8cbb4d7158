"""A Ray cluster of this machine for tests: small, with a token, ended with its module."""

import gc
import os
import warnings
from contextlib import contextmanager

import pytest

# Ray reads these when it is imported; left alone it would write a token to the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'foreserve[ray]'")

MARKS = [
    pytest.mark.ray,
    pytest.mark.timeout(40),
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")),
]
"""Of each module that uses it."""


@contextmanager
def small_cluster():
    """`ray`, connected to a cluster of its own."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        yield ray
    finally:
        ray.shutdown()
        with warnings.catch_warnings():  # Ray leaves its processes to the collector, and Python complains of that
            warnings.simplefilter("ignore")
            gc.collect()
