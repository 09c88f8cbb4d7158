"""Several services on one machine: who holds its replicas, by what each is foreseen to need and by what waits.

Minima come first. Then each further replica goes where it is needed most; one that is there already is taken away only
where the difference is worth a start, and not soon after it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from foreserve.errors import ConfigError

WORTH_A_START: Final = 0.25
"""Of a replica: by so much more must another need it that one is stopped here and started there."""

LEAST_TENURE_S: Final = 10.0
TENURE_STARTS: Final = 4.0
"""A service that has work keeps a replica it was given for as long as so many starts take, and at least so long."""

_TENURED: Final = 1e6
"""More than any need."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one service wants. `active` of its replicas are starting or ready, `isolated` can be taken back at once.

    `leaving` others still hold their room. `need` is in fractions of replicas, foreseen or waiting; `waits_s` how long
    the first in its queue has waited (`None`: nothing waits). Each replica takes `memory_gb`. It was given its last
    one `given_s` ago, and a start takes `start_s`.
    """

    service: str
    wanted: int
    need: float
    least: int = 0
    active: int = 0
    isolated: int = 0
    leaving: int = 0
    waits_s: float | None = None
    memory_gb: float = 0.0
    given_s: float = float("inf")
    start_s: float = 0.0


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas a service may have now; `why` is empty where that is what it wants.

    `share` is what it is entitled to; more than `replicas` where another has to give something up first.
    """

    replicas: int
    share: int
    why: str = ""


class _Budget:
    """What is left of a machine."""

    def __init__(self, replicas: float, memory_gb: float) -> None:
        self.replicas = replicas
        self.memory_gb = memory_gb

    def take(self, memory_gb: float) -> bool:
        """Room for one more, of so much memory. False, and nothing is taken, where there is none."""
        if self.replicas < 1 or memory_gb > self.memory_gb + 1e-9:
            return False
        self.replicas -= 1
        self.memory_gb -= memory_gb
        return True


def value(claim: Claim, nth: int) -> float:
    """What its `nth` replica (from 1) is worth to a service: at most 1 of its need, and more where something waits."""
    worth = min(max(claim.need - (nth - 1), 0.0), 1.0)
    held = nth <= claim.active
    tenure_s = max(LEAST_TENURE_S, TENURE_STARTS * claim.start_s)
    if held:
        return worth + WORTH_A_START + (_TENURED if worth > 0 and claim.given_s < tenure_s else 0.0)
    if nth == 1 and claim.waits_s is not None:
        # Who waits and has none comes before all that is only busy, the sooner the longer it waits.
        worth += 1.0 + claim.waits_s / tenure_s
    return worth


def share(claims: Sequence[Claim], replicas: int | None = None, memory_gb: float | None = None) -> dict[str, Granted]:
    """What each service gets of a machine with so many replicas and so much memory (`None`: no bound), by name.

    The same claims give the same answer, in any order. Never more than there is room for: what leaves still holds its
    room, so a grant may follow a step behind its share.
    """
    most, memory = float("inf") if replicas is None else replicas, float("inf") if memory_gb is None else memory_gb
    by_name = {claim.service: claim for claim in sorted(claims, key=lambda claim: claim.service)}
    order = _order([*by_name.values()])
    shares = dict.fromkeys(by_name, 0)
    budget = _Budget(most, memory)
    for name in order:
        # In order of worth; a later one may still fit where a larger one did not.
        if budget.take(by_name[name].memory_gb):
            shares[name] += 1
    taken = {name: claim.active + claim.isolated + claim.leaving for name, claim in by_name.items()}
    free = _Budget(
        most - sum(taken.values()), memory - sum(by_name[name].memory_gb * count for name, count in taken.items())
    )
    now = {name: min(shares[name], claim.active + claim.isolated) for name, claim in by_name.items()}
    for name in order:
        if now[name] < shares[name] and free.take(by_name[name].memory_gb):
            now[name] += 1
    return {name: _granted(claim, shares[name], now[name], by_name, shares) for name, claim in by_name.items()}


def _order(claims: Sequence[Claim]) -> list[str]:
    """A service's name for each replica that is wanted, the one that is worth most first; minima before all others."""
    wanted = [
        (nth > claim.least, -value(claim, nth), claim.service, nth)
        for claim in claims
        for nth in range(1, max(claim.wanted, claim.least) + 1)
    ]
    return [service for _, _, service, _ in sorted(wanted)]


def _granted(claim: Claim, entitled: int, now: int, every: dict[str, Claim], shares: dict[str, int]) -> Granted:
    if now >= claim.wanted:
        return Granted(replicas=now, share=entitled)
    if now < entitled:
        giving = [
            name for name, other in every.items() if shares[name] < other.active + other.isolated or other.leaving
        ]
        gives = " and ".join(name for name in giving if name != claim.service)
        why = f"{entitled} as soon as {gives} has given up what it holds" if gives else f"{entitled} when there is room"
        return Granted(replicas=now, share=entitled, why=why)
    others = ", ".join(f"{name} {count}" for name, count in shares.items() if name != claim.service and count)
    why = f"the machine is shared: {others} need theirs more" if others else "the machine has room for no more"
    return Granted(replicas=now, share=entitled, why=why)


class Shares:
    """The live form: keeps the last claim of each service, and tells those that have to give something up."""

    def __init__(self, replicas: int | None = None, memory_gb: float | None = None) -> None:
        self._replicas = replicas
        self._memory_gb = memory_gb
        self._claims: dict[str, Claim] = {}
        self._looks: dict[str, Callable[[], tuple[int, int, int]]] = {}
        self._pokes: dict[str, Callable[[], None]] = {}
        self.memory_gb: dict[str, float] = {}
        """Of one replica of each service, where that is known."""

    def enter(self, service: str, look: Callable[[], tuple[int, int, int]], poke: Callable[[], None]) -> None:
        """A service that will ask. `look` tells its active, isolated and leaving replicas, `poke` has it ask anew."""
        self._looks[service] = look
        self._pokes[service] = poke

    def hold(self, service: str, replicas: int) -> None:
        """A service with a fixed number of them: it never asks and never gives one up."""
        self._claims[service] = Claim(
            service=service, wanted=replicas, need=float(replicas), least=replicas, active=replicas
        )

    def check(self, leasts: Mapping[str, int]) -> None:
        """Whether the machine has room for the least of each service, and beside them for one of those without.

        Raises ConfigError, which names them.

        To be called again once `memory_gb` is known.
        """
        told = ", ".join(f"{name} {count}" for name, count in leasts.items() if count)
        count, zeros = sum(leasts.values()), sorted(name for name, least in leasts.items() if not least)
        if self._replicas is not None and count > self._replicas:
            raise ConfigError(
                f"machine.replicas is {self._replicas}, and the services' least numbers come to {count} ({told}); "
                f"valid: at least {count}, or a smaller least, as in `replicas: [0, 2]`"
            )
        if self._replicas is not None and zeros and count == self._replicas:
            raise ConfigError(
                f"machine.replicas is {self._replicas}, the services' least numbers come to as many ({told}), and no "
                f"room is left for one of {zeros[0]}; valid: at least {count + 1}, or a smaller least"
            )
        taken_gb = sum(self.memory_gb.get(name, 0.0) * count for name, count in leasts.items())
        if self._memory_gb is not None and taken_gb > self._memory_gb:
            each = ", ".join(f"{name} {self.memory_gb[name]:.2g} GiB" for name in leasts if self.memory_gb.get(name))
            raise ConfigError(
                f"machine.memory_gb is {self._memory_gb:g}, and the services' least numbers ({told}) take about "
                f"{taken_gb:.2g} (a replica of each: {each}); valid: more memory, or a smaller least, as in "
                "`replicas: [0, 2]`"
            )

        for name in zeros:
            gb = self.memory_gb.get(name, 0.0)
            if self._memory_gb is not None and taken_gb + gb > self._memory_gb:
                beside = f", and the services' least numbers ({told}) leave" if told else ": there is"
                raise ConfigError(
                    f"machine.memory_gb is {self._memory_gb:g}{beside} no room for one of {name}, which takes "
                    f"{gb:.2g} GiB; valid: more memory, or a smaller least"
                )

    def ask(self, claim: Claim) -> Granted:
        """What this service gets now. Whoever holds more than its share by that is asked to ask again."""
        self._claims[claim.service] = claim
        for name, look in self._looks.items():
            if name != claim.service:
                self._claims[name] = self._fresh(name, look())
        for name, gb in self.memory_gb.items():
            if name in self._claims:
                self._claims[name] = msgspec.structs.replace(self._claims[name], memory_gb=gb)
        granted = share([*self._claims.values()], self._replicas, self._memory_gb)
        for name, poke in self._pokes.items():
            if name != claim.service and granted[name].share < self._claims[name].active:
                poke()
        return granted[claim.service]

    def _fresh(self, name: str, stands: tuple[int, int, int]) -> Claim:
        """Its last claim, with what it holds now. Before it has asked for the first time it keeps what it has."""
        active, isolated, leaving = stands
        known = self._claims.get(name) or Claim(service=name, wanted=active, need=float(active), least=active)
        return msgspec.structs.replace(known, active=active, isolated=isolated, leaving=leaving)
