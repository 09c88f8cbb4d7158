"""What a worker imports between its fork and its being ready, so that the next may be forked with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import PurePath
from types import ModuleType
from typing import Final

from foreserve import clock
from foreserve.messages import ImportedLater
from foreserve.runtime.fitness import changed, working_folder

MOST_MODULES: Final = 4096
MOST_CHARACTERS: Final = 96 << 10
"""Bounds on the names that are told, and on their length together: they have to fit a packet to who imports them."""


class Later:
    """From now on, until it is `told`. Costs about a microsecond for each module that is imported."""

    def __init__(self) -> None:
        self._begun: dict[str, None] = {}
        self._began = clock.precise()
        self._variables = dict(os.environ)
        self._folders = frozenset(sys.path) - {"", working_folder()}
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Asked by the import system before other finders are, whatever is imported; finds nothing itself.

        So the order is known in which imports begin. Modules are listed as they end: what others need comes first, and
        where two need each other, only one of them can be imported first.
        """
        if len(self._begun) < MOST_MODULES:
            self._begun.setdefault(name)

    def told(self) -> ImportedLater:
        """What came since, in the order in which it was begun.

        Only what another process finds by its name alone: neither `__main__` nor what was made at run time, nor files
        of the working folder or of folders that joined the path later, which are the user's own.
        """
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        names: list[str] = []
        room = MOST_CHARACTERS
        for name in self._found():
            room -= len(name) + 4
            if room < 0:
                break
            names.append(name)
        return ImportedLater(tuple(names), changed(self._variables), clock.precise() - self._began)

    def _found(self) -> Iterator[str]:
        for name in self._begun:
            module = sys.modules.get(name)
            if isinstance(module, ModuleType) and _folder(name, module) in self._folders:
                yield name


def _folder(name: str, module: ModuleType) -> str | None:
    """The folder of the path in which it was found; `None` for what was not found as a file."""
    spec = vars(module).get("__spec__")  # not by getattr: some import on being looked at
    if not isinstance(spec, ModuleSpec) or spec.name != name or not spec.has_location or spec.origin is None:
        return None
    depth = name.count(".") + (spec.submodule_search_locations is not None)
    parents = PurePath(spec.origin).parents
    return str(parents[depth]) if depth < len(parents) else None
