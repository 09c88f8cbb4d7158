"""A fleet of servers that we cannot start: what scaling wants is told to who can, and what comes of it is used.

Up: it is told at once, and places that are known already wait for their servers. Down: the last ones are given nothing
new and finish what they run; only then is it told, so that what is stopped holds nothing of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final

from foreserve.clock import now as loop_now
from foreserve.fleet.outside_tell import Teller, Untold, Wish
from foreserve.fleet.replicas import Replicas
from foreserve.fleet.seats import Seat
from foreserve.scaling import ReplicaView

log = logging.getLogger(__name__)

GRACE_S: Final = 5.0
"""After the start: servers that are up by then are used, however many were asked for."""

TICK_S: Final = 1.0
REPEAT_S: Final = 60.0
"""What was told and has not come true is told again so often."""

FIRST_BACKOFF_S: Final = 2.0
_STARTS: Final = 9


class Outside:
    """Stands in for `replicas` where scaling is concerned: `scale`, `views` and `start_s` are as there.

    `least` is the number that there always should be. `joins` takes in addresses that were told in return. `places` are
    addresses that stay the same however often their servers come and go; any other is forgotten once its server is told
    to be of no use, or was lost and does not come back.
    """

    def __init__(
        self,
        service: str,
        replicas: Replicas,
        teller: Teller,
        least: int,
        joins: Callable[[Sequence[str]], Awaitable[None]],
        places: Collection[str] = (),
    ) -> None:
        self.service = service
        self.why = ""
        """What the newest wish is for, in words."""
        self.problem = ""
        """Why the newest wish was not heard, in words; empty when it was."""
        self._replicas = replicas
        self._teller = teller
        self._least = least
        self._joins = joins
        self._places = frozenset(places)
        self._wanted: int | None = None
        self._early = 0
        """The most that was wanted before it was known what is there."""
        self._asked_at = 0.0
        self._began = 0.0
        self._told: int | None = None
        self._wished: int | None = None
        self._wishes = 0
        self._not_before = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self._starts: deque[float] = deque(maxlen=_STARTS)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- as `Replicas`

    @property
    def start_s(self) -> float:
        """How long it took until a server that was wished for was ready: the median of the last; 0 before any."""
        return statistics.median(self._starts) if self._starts else 0.0

    def views(self, now: float) -> tuple[ReplicaView, ...]:
        """Of the servers that there are and those that are wished for; a place whose server is away is none."""
        views = self._replicas.views(now)
        there = [view for view in views if view.phase != "starting"]
        missing = self._missing() if self._wanted is not None else max(0, self._least - self._ready())
        coming = [view for view in views if view.phase == "starting"][:missing]
        coming += [
            ReplicaView(name=f"{self.service}/wished.{n}", phase="starting", since=self._asked_at)
            for n in range(missing - len(coming))
        ]
        return (*there, *coming)

    def scale(self, wanted: int) -> None:
        """See to it that there are so many. Never blocks; the same number again changes nothing."""
        if self._wanted is None:
            self._early = max(self._early, wanted)  # what is there is not known yet
            return
        if wanted > self._wanted:
            self._asked_at = loop_now()
        if wanted != self._wanted:
            self._wanted = wanted
            self._not_before, self._backoff_s = 0.0, FIRST_BACKOFF_S
            self._news.set()
        self._place()

    # --- the loop

    def start(self) -> None:
        """Begin, before the replicas start: they may have to wait for servers that this asks for."""
        self._began = loop_now()
        self._replicas.started.append(lambda _: self._came())
        self._task = asyncio.create_task(self._run(), name=f"wishes of {self.service}")

    async def stop(self) -> None:
        """Tell nothing more; what was told stays as it is. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        await asyncio.sleep(GRACE_S)
        self._wanted = max(self._least, self._ready(), self._early)
        self._asked_at = loop_now()
        if self._ready() >= self._wanted:
            self._told, self._not_before = self._wanted, loop_now() + REPEAT_S
        while True:
            self._news.clear()
            try:
                await self._look()
            except Exception:
                log.exception("what %s wants could not be told", self.service)
                self._not_before = loop_now() + REPEAT_S
            try:
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        if not self._wanted and self._replicas.wanted:
            self.scale(1)  # a request came, and there was none
        self._place()
        if (wanted := self._to_tell(loop_now())) is not None:
            await self._tell(wanted)

    def _place(self) -> None:
        """As many of the known places as are wanted."""
        assert self._wanted is not None
        self._replicas.scale(self._wanted)

    def _to_tell(self, now: float) -> int | None:
        """What is to be told now, if anything."""
        wanted = self._wanted
        if wanted is None or now < self._not_before:
            return None
        if wanted == self._told:
            return wanted if self._missing() and self._not_before else None
        # Fewer are told once those that leave have finished.
        leaving = any(not seat.wanted and seat.alive is not None for seat in self._replicas.seats)
        return None if leaving and (self._told is None or wanted < self._told) else wanted

    async def _tell(self, wanted: int) -> None:
        if wanted != self._wished:
            self._wished = wanted
            self._wishes += 1
        seats = [(str(seat.spec.options.get("url", "")), seat) for seat in self._replicas.seats]
        if wanted == self._told:
            self._forget(url for url, seat in seats if seat.wanted and not seat.ready and seat.generation > 1)
            seats = [(url, seat) for url, seat in seats if not seat.closing]
        wish = Wish(
            id=f"{self.service}-{id(self):x}-{self._wishes}",
            service=self.service,
            wanted=wanted,
            current=self._ready(),
            why=self.why,
            used=tuple(url for url, seat in seats if seat.wanted or seat.alive is not None),
            unused=tuple(url for url, seat in seats if not seat.wanted and seat.alive is None and self._had(url, seat)),
        )
        try:
            servers = await self._teller.tell(wish)
        except Untold as error:
            self.problem = str(error)
            self._not_before = loop_now() + self._backoff_s
            log.warning("%s wants %d servers, and was not heard: %s", self.service, wanted, error)
            self._backoff_s = min(2.0 * self._backoff_s, REPEAT_S)
            return
        for url, seat in seats:
            # Somebody starts it now, whether or not it is ever ready: when it is of no use, that is to be told.
            seat.had_server = seat.had_server or url in wish.used
        log.info("%s: told that %d servers are wanted, of which %d serve", self.service, wanted, wish.current)
        self._told, self.problem = wanted, ""
        self._not_before, self._backoff_s = loop_now() + REPEAT_S, FIRST_BACKOFF_S
        self._forget(wish.unused)
        if servers:
            await self._joins(servers)

    def _had(self, url: str, seat: Seat) -> bool:
        """Whether a server may be there that somebody has to stop."""
        return seat.had_server or url not in self._places

    def _forget(self, urls: Iterable[str]) -> None:
        for url in [url for url in urls if url not in self._places]:
            with contextlib.suppress(LookupError):
                self._replicas.leave(url)

    def _came(self) -> None:
        """A server is ready."""
        if self._wanted is not None and self._told == self._wanted and self._ready() <= self._wanted:
            self._starts.append(loop_now() - self._asked_at)

    def _ready(self) -> int:
        return sum(seat.ready for seat in self._replicas.seats)

    def _missing(self) -> int:
        """Wished for, and not there yet."""
        wanted = 0 if self._wanted is None else self._wanted
        active = sum(seat.wanted and seat.ready for seat in self._replicas.seats)
        return max(0, wanted - active)
