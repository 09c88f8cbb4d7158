"""What becomes of a subtree whose stage has failed: the request fails, the child is dropped, or a value stands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foreserve.errors import ConfigError


@dataclass(frozen=True)
class Default:
    """This value stands in for what failed."""

    value: Any


Failed = Literal["fail", "drop"] | Default
"""`"fail"`: what encloses it fails too. `"drop"`: the child of the nearest enclosing `map` is left out."""


def default(value: Any) -> Default:
    """`failed=default("unknown")`: this value in place of what failed."""
    return Default(value)


def checked(failed: Any, where: str) -> Failed:
    """`failed` as it was given. Raises ConfigError for anything else."""
    if failed in ("fail", "drop") or isinstance(failed, Default):
        return failed  # type: ignore[no-any-return]
    raise ConfigError(f'{where}: `failed` is {failed!r}; valid: "fail", "drop", or default(VALUE)')


class Dropped(Exception):
    """A stage whose failures drop the enclosing child has failed; the cause is the error itself."""
