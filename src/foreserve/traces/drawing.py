"""Random numbers of traces: a seed, and where need be a place within the trace, becomes a generator."""

from __future__ import annotations

from numpy.random import Generator as Generator  # noqa: TID251 - the type of the generator that is passed on
from numpy.random import default_rng  # noqa: TID251 - a seed becomes a generator

from foreserve.errors import ConfigError


def generator(seed: int, *place: int) -> Generator:
    """The same for the same seed and place; other places' have nothing to do with it."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be at least 0")
    return default_rng([seed, *place])
