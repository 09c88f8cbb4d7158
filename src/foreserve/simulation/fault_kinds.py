"""The faults there are, by name, with their parameters: typed, frozen, each default a plausible bad day.

`every_s` is the mean time between two strikes (they come at random), `for_s` how long one lasts; seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.registry import choices
from foreserve.settings import Settings


class Fault(Settings, frozen=True, kw_only=True):
    """Base of all."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str):
                continue
            least, most = BOUNDS[name]
            if not least <= value <= most:  # what is not a number is not within bounds either
                raise ValueError(f"`{name}` is {value}; it must be within {least:g} and {most:,.15g}")


MOST_S: Final = 1e9

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "every_s": (0.001, MOST_S),
    "for_s": (0.001, MOST_S),
    "by_s": (0.0, MOST_S),
    "patience_s": (0.0, MOST_S),
    "backoff_s": (0.0, MOST_S),
    "factor": (1e-6, 1e6),
    "bias": (1e-6, 1e6),
    "noise": (0.0, 20.0),
    "times": (0.01, 1000.0),
    "at_once": (1, 1000),
    "most": (1, 20),
    "share": (0.0, 1.0),
    "in_start": (0.0, 1.0),
    "in_time": (0.0, 1.0),
    "absurd": (0.0, 1.0),
    "after_first": (0.0, 1.0),
}
"""Of each parameter, whose fault it is: what a simulation can work with. They end far beyond any bad day."""


class WorkerDeath(Fault, frozen=True, kw_only=True):
    """Up to `at_once` replicas are killed in the same instant; a share `in_start` of their successors as they start."""

    every_s: float = 60.0
    at_once: int = 1
    in_start: float = 0.2


class RestlessScaling(Fault, frozen=True, kw_only=True):
    """The number of replicas is set to another within its bounds, where they leave it open.

    To none only while nothing waits or runs.
    """

    every_s: float = 10.0


class SlowWorker(Fault, frozen=True, kw_only=True):
    """A replica's steps take `factor` times as long."""

    every_s: float = 60.0
    for_s: float = 20.0
    factor: float = 4.0


class StaleStatistics(Fault, frozen=True, kw_only=True):
    """A replica's heartbeats repeat the load that it had when that began."""

    every_s: float = 60.0
    for_s: float = 30.0


class LostHeartbeat(Fault, frozen=True, kw_only=True):
    """Nothing is heard of a replica: until it is given up, or, for a share `in_time`, until shortly before that."""

    every_s: float = 120.0
    in_time: float = 0.5


class DelayedStart(Fault, frozen=True, kw_only=True):
    """A `share` of all starts takes longer, by `by_s` in the mean."""

    share: float = 0.5
    by_s: float = 30.0


class MispredictedLengths(Fault, frozen=True, kw_only=True):
    """All that is foreseen of an answer's length is `bias` times what it was, with log-normal `noise` (its sigma).

    A share is `absurd`: one token, or the longest that may be. Where nothing was foreseen, nothing is changed.
    """

    bias: float = 1.0
    noise: float = 0.7
    absurd: float = 0.0


class LoadSpike(Fault, frozen=True, kw_only=True):
    """In a window of `for_s` seconds each request comes `times` times, or (`sooner`) all come that much sooner."""

    every_s: float = 120.0
    for_s: float = 15.0
    times: float = 4.0
    how: Literal["more", "sooner"] = "more"


class ClientCancel(Fault, frozen=True, kw_only=True):
    """A `share` of the clients leaves after `patience_s` in the mean: from the start, or `after_first` token."""

    share: float = 0.1
    patience_s: float = 3.0
    after_first: float = 0.5


class ClientRetry(Fault, frozen=True, kw_only=True):
    """A `share` of the clients that were shed or failed comes again, up to `most` times.

    Not before `Retry-After`, and not before `backoff_s`, which doubles each time; each wait up to a quarter longer.
    """

    share: float = 0.8
    most: int = 3
    backoff_s: float = 1.0


FAULTS: Final[Mapping[str, type[Fault]]] = {
    "worker_death": WorkerDeath,
    "slow_worker": SlowWorker,
    "stale_statistics": StaleStatistics,
    "lost_heartbeat": LostHeartbeat,
    "delayed_start": DelayedStart,
    "mispredicted_lengths": MispredictedLengths,
    "load_spike": LoadSpike,
    "client_cancel": ClientCancel,
    "client_retry": ClientRetry,
    "restless_scaling": RestlessScaling,
}

NAMES: Final[Mapping[type[Fault], str]] = {fault: name for name, fault in FAULTS.items()}


def read_faults(words: str, where: str = "--faults") -> list[Fault]:
    """`worker_death,slow_worker:factor=4;for_s=10` as faults. Raises ConfigError that names what is valid.

    Faults are separated by commas, and so may be a fault's parameters, or by semicolons.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for part in words.replace(";", ",").split(","):
        name, colon, first = part.strip().partition(":")
        if not name:
            continue
        if "=" not in name:
            if name not in FAULTS:
                raise ConfigError(f"{where}: no fault is called {name!r}{choices(name, [*FAULTS, 'mixed'])}")
            found.append((name, {}))
        given = first if colon else name if "=" in name else ""
        if not given:
            continue
        key, equals, value = given.partition("=")
        if not found or not equals:
            raise ConfigError(f"{where}: {part.strip()!r} is no fault and no parameter; valid: {_example()}")
        found[-1][1][key.strip()] = _value(value.strip())
    if not found:
        raise ConfigError(f"{where}: it names no fault; valid: {', '.join([*FAULTS, 'mixed'])}, as in {_example()}")
    return [parse(given, FAULTS[name], f"{where}: {name}") for name, given in found]


def words_of(faults: list[Fault]) -> str:
    """The words that `read_faults` reads these from, with what differs from the defaults."""
    return ",".join(_words_of(fault) for fault in faults)


def _words_of(fault: Fault) -> str:
    plain = type(fault)()
    own = [name for name in fault.__struct_fields__ if getattr(fault, name) != getattr(plain, name)]
    parameters = ";".join(f"{name}={getattr(fault, name)}" for name in own)
    return NAMES[type(fault)] + (f":{parameters}" if parameters else "")


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _example() -> str:
    return "worker_death,slow_worker:factor=4;for_s=10"
