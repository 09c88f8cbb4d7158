"""A service that may have no replica: what its dispatcher asks about one that is still to come."""

from __future__ import annotations

from typing import Protocol


class OnDemand(Protocol):
    """The fleet of a service whose first request starts a replica."""

    @property
    def limit_s(self) -> float:
        """The longest that a start may take, in seconds: so long a request waits for one."""
        ...

    def coming(self) -> bool:
        """Whether a replica starts, or will be started without being asked for."""
        ...

    def ready_in(self, now: float) -> float:
        """Seconds until a replica is expected to be ready, were it asked for now; 0 where nothing is known."""
        ...
