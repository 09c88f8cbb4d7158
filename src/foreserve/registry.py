"""Parts by name. Built-ins are registered through the same entry points as a user's own package.

A package registers a part in its `pyproject.toml`:

    [project.entry-points."foreserve.batch_policies"]
    mine = "my_package.policies:Mine"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from foreserve.errors import ConfigError

GROUPS = {
    "batch policy": "foreserve.batch_policies",
    "placement": "foreserve.placements",
    "admission": "foreserve.admissions",
    "scaling policy": "foreserve.scaling_policies",
    "forecaster": "foreserve.forecasters",
    "engine": "foreserve.engines",
    "kind": "foreserve.kinds",
}


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=group))}


def names(what: str) -> list[str]:
    """The registered names of one kind of part (a key of `GROUPS`), sorted."""
    return sorted(_group(GROUPS[what]))


def load(what: str, name: str, where: str, also: Iterable[str] = ()) -> Any:
    """The registered object. Raises ConfigError naming `where` and the valid names, those that are valid `also` too."""
    return entry(what, name, where, also).load()


def entry(what: str, name: str, where: str, also: Iterable[str] = ()) -> EntryPoint:
    """As `load`, without importing it: `.value` is its `"module:attribute"`."""
    try:
        return _group(GROUPS[what])[name]
    except KeyError:
        raise ConfigError(f"{where}: no {what} is called {name!r}{choices(name, [*also, *names(what)])}") from None


def choices(given: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'? valid: a, b, x`, for the end of an error message."""
    valid = list(valid)
    near = difflib.get_close_matches(given, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} valid: {', '.join(valid)}" if valid else ""
