"""A kind as an app file makes it, and what is asked of one before anything of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from foreserve.ports import Kind
from foreserve.settings import ServiceSettings, UpstreamSettings

Progress = Callable[[float, str], None]
"""`progress(done, what)`: the share done (0 to 1) of one slow step of a preparation, and its name."""


class Served(Kind, Protocol):
    """A kind as an app file makes it: with settings, and a slow first step that is done once."""

    @property
    def settings(self) -> ServiceSettings: ...
    def prepare(self, progress: Progress | None) -> None:
        """Do what must be done once on a machine, such as turning weights into an engine's form. May take minutes."""
        ...


def policy_name(kind: Served) -> str:
    """The policy that orders it: the one that was chosen, or what suits its engine."""
    return kind.policy if kind.settings.policy == "auto" else kind.settings.policy


def leasts(services: Mapping[str, Served]) -> dict[str, int]:
    """Of each service that takes room on this machine; servers that run elsewhere take none."""
    settings = {name: kind.settings for name, kind in services.items()}
    return {
        name: each.bounds[0]
        for name, each in settings.items()
        if each.bounds[1] and not isinstance(each, UpstreamSettings)
    }
