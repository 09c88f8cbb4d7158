"""What all settings have in common: how a struct of them behaves, and the bounds that it checks."""

from __future__ import annotations

import msgspec


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError for a setting below `least`."""
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be at least {least}")


def above(name: str, value: float, bound: float) -> None:
    """Raises ValueError for a setting that is not above `bound`."""
    if not value > bound:
        raise ValueError(f"`{name}` is {value}; it must be above {bound}")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings: frozen, keyword only, unknown keys refused."""
