"""What one replica holds: sums of plain costs, a look-ahead map of each resource that works ramp up, unread prompts.

An engine that is given more than it has room for later preempts and computes again, which loses nothing and costs time:
the map is there to make that rare, not to make it impossible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from foreserve.core import Cost, EngineLoad, Ramp, Work, restore, subtract
from foreserve.fleet.ahead import Ahead
from foreserve.fleet.steps import PromptPace, StepClock
from foreserve.ports import Unread

KV: Final = "kv_tokens"
"""The resource that `EngineLoad.kv_fraction` tells of."""

STALE_S: Final = 10.0
"""After so long without a report nobody is taken to hold less than our own account says."""

UNREAD_STEPS: Final = 32
UNREAD_S: Final = 2.0
"""What has no first token yet has not begun to grow: its ramp begins anew after so many steps, for so long. After that
it may have begun unseen: answers that are not streamed come whole."""

CROWDED: Final = 0.9
"""Of a resource: where more is held, a first token may have waited for room, and tells nothing of how prompts are read.
"""


class _Prompt(msgspec.Struct):
    """One that was given and has no first token yet: what must be read of it, and when it was given."""

    tokens: int
    since: float


class Occupancy:
    """Works that were given to one replica and have not ended. Pure but for its memory: `now` (seconds) is told.

    `capacity` is the most that it holds. A resource that a work ramps up is judged by the map alone, the rest of its
    cost is summed; resources that `capacity` does not name are not limited. Those of `holds` are foreseen alike, and
    limit nothing.
    """

    def __init__(self, capacity: Cost, holds: Cost | None = None) -> None:
        self.capacity = dict(capacity)
        self._held: dict[str, Work] = {}
        self._sizes: dict[str, int] = {}
        """Tokens of each, prompt and foreseen answer."""
        self._whole = 0
        self._unread: dict[str, _Prompt] = {}
        self._unread_tokens = 0
        self._free = dict(capacity)
        self._ahead = Ahead(self._free, {**(holds or {}), **capacity})
        self._clock = StepClock()
        self._clocked = False
        """Whether heartbeats tell how long steps are."""
        self._passed = 0
        """Steps since unread ramps began anew."""
        self._began: dict[str, float] = {}
        """When each answer began, where the pace of answers is needed."""
        self._pace = PromptPace()
        self._read_at = 0.0
        self._heard_at = 0.0
        self._each = 0.0
        """What a work held on average when the engine was last heard."""
        self._others = 0.0
        """Slots that are taken by what did not come from us."""
        self.changes = 0
        """How often what can be taken, or what is foreseen, has become another."""
        self._room: tuple[dict[str, float], Ahead] | None = None
        """What was last told, while it still holds."""

    @property
    def held(self) -> Mapping[str, Work]:
        """By id, oldest first."""
        return self._held

    @property
    def tokens(self) -> int:
        """Of the prompts and foreseen answers of all that is held."""
        return self._whole

    @property
    def unread(self) -> Unread | None:
        """Prompts that have no first token yet; `None` without any."""
        if not self._unread:
            return None
        head = next(iter(self._unread.values()))
        return Unread(
            tokens=self._unread_tokens, first=head.tokens, since=max(head.since, self._read_at), count=len(self._unread)
        )

    @property
    def token_s(self) -> float | None:
        """Seconds for each token of prompts, as learned; `None` is not known."""
        return self._pace.token_s

    @property
    def step_s(self) -> float | None:
        """The length of a step of late, in seconds; `None` is not known."""
        return self._clock.step_s

    # --- works come and go

    def start(self, works: Sequence[Work], now: float, cached: int = 0) -> None:
        """These begin now, with so many tokens of their prompts cached.

        What is still held under one of their ids is forgotten.
        """
        self._advance(now)
        for work in works:
            if work.id in self._held:
                self.end(work.id)
            self._held[work.id] = work
            prompt, size = _tokens(work)
            self._sizes[work.id] = size
            self._whole += size
            hit = min(cached, max(prompt - 1, 0))
            cached -= hit
            self._unread[work.id] = _Prompt(prompt - hit, now)
            self._unread_tokens += prompt - hit
            ramp = self._ramp(work)
            if plain := self._plain(work, ramp):
                self._set_free(subtract(self._free, plain))
            if ramp is not None:
                self._ahead.map(ramp.resource).add(work.id, ramp)
                self._room = None

    def answered(self, ids: Collection[str], now: float) -> None:
        """The first tokens of these have come, together. Engines read in order: what was given before has begun too."""
        left = {work_id for work_id in ids if work_id in self._unread}
        if not left:
            return
        self._advance(now)
        tokens, since = 0, max(next(iter(self._unread.values())).since, self._read_at)
        while left:
            work_id = next(iter(self._unread))
            left.discard(work_id)
            tokens += self._has_begun(work_id, now)
        if self._ahead.peak(1) < CROWDED:
            self._pace.read(tokens, now - since)
        self._read_at = now

    def _has_begun(self, work_id: str, now: float) -> int:
        """It is unread no more. What was."""
        unread = self._unread.pop(work_id)
        self._unread_tokens -= unread.tokens
        self._begin_anew(work_id)
        if not self._clocked:
            self._began[work_id] = now
        return unread.tokens

    def _begin_anew(self, work_id: str) -> None:
        """Its ramp begins now, not when it was given."""
        ramp = self._ramp(self._held[work_id])
        if ramp is not None:
            self._ahead.map(ramp.resource).begin_anew(work_id, ramp)
            self._room = None

    def end(self, work_id: str, now: float | None = None, output_tokens: float = 0.0) -> None:
        """It has ended, however that came about, after so many tokens. Unknown ids are ignored."""
        work = self._held.pop(work_id, None)
        if work is None:
            return
        self._whole -= self._sizes.pop(work_id)
        if (unread := self._unread.pop(work_id, None)) is not None:
            self._unread_tokens -= unread.tokens
        began = self._began.pop(work_id, None)
        if began is not None and now is not None and output_tokens > 1 and now > began and not self._clocked:
            self._clock.heard((now - began) / (output_tokens - 1))
        ramp = self._ramp(work)
        if plain := self._plain(work, ramp):
            # From the capacity, once nothing is held: sums of fractions would drift.
            self._set_free(restore(self._free, plain) if self._held else dict(self.capacity))
        if ramp is not None:
            self._ahead.map(ramp.resource).remove(work.id)
            self._room = None

    def clear(self) -> None:
        """The replica is gone."""
        for work_id in list(self._held):
            self.end(work_id)

    # --- what the engine says

    def heard(self, load: EngineLoad, now: float) -> None:
        """What the engine says of itself."""
        self._advance(now)
        if load.last_step_s is not None and not self._clocked:
            self._clocked = True
            self._began.clear()
        self._clock.heard(load.last_step_s)
        if self._others != (others := float(load.others or 0)):
            self._others, self._room = others, None
        self._heard_at = now
        self._compare(load)

    def _compare(self, load: EngineLoad) -> None:
        """Find what is held beside our own works, or less than they would hold by themselves.

        More is believed only where others run or may run: engines count what they keep cached. Less may be what has not
        begun, or what works share. Where the engine does not tell, others are taken to hold as much as ours do.
        """
        whole = self._ahead.whole.get(KV)
        if whole is None:
            return
        others = load.others
        if others is None and load.running is not None:
            others = max(0, load.running + (load.waiting or 0) - len(self._held))
        held = self._ahead.map(KV).held_now + whole - self._ahead.capacity.get(KV, whole)
        if self._held:
            self._each = held / len(self._held)
        beside = 0.0
        if load.kv_fraction is not None:
            told = load.kv_fraction * whole
            ramps = (self._ramp(self._held[work_id]) for work_id in self._unread)
            begun = held - sum(ramp.base for ramp in ramps if ramp is not None and ramp.resource == KV)
            more = 0.0 if others == 0 else told - held
            beside = more if told > held else min(0.0, told - begun)
        elif others:
            beside = others * self._each
        if beside or KV in self._ahead.beside:
            self._ahead.beside = {KV: beside} if beside else {}
            self._room = None

    # --- what can be read

    def room(self, now: float) -> tuple[dict[str, float], Ahead]:
        """What is free now, and what can still begin. Both are to be read before the next call and not kept.

        While nothing has changed, `changes` is the same as before.
        """
        self._advance(now)
        if self._room is None:
            free = self._free
            if self._others and "slots" in free:
                # One is always ours: others that fill a server for good must not keep us out of it for good.
                free = {
                    **free,
                    "slots": max(free["slots"] - self._others, 0.0 if self._held else min(1.0, free["slots"])),
                }
            for resource, ahead in self._ahead.maps.items():
                if resource in free and (held := ahead.held_now):
                    free = {**free, resource: free[resource] - held}
            self._room = free, self._ahead
            self.changes += 1
        return self._room

    def _advance(self, now: float) -> None:
        if not self._held:
            self._clock.begin(now)
        elif steps := self._clock.passed(now):
            self._room = None
            for ahead in self._ahead.maps.values():
                ahead.advance(steps)
            self._passed += steps
            if self._passed >= UNREAD_STEPS:
                self._passed = 0
                for work_id, prompt in self._unread.items():
                    if now - prompt.since < UNREAD_S:
                        self._begin_anew(work_id)
        if now - self._heard_at > STALE_S and self._ahead.beside.get(KV, 0.0) < 0.0:
            self._ahead.beside = {}
            self._room = None

    def _set_free(self, free: dict[str, float]) -> None:
        self._free = self._ahead.capacity = free
        self._room = None

    def _ramp(self, work: Work) -> Ramp | None:
        """The ramp of a work, where it is of something that is anticipated here."""
        ramp = work.ramp
        return ramp if ramp is not None and ramp.resource in self._ahead.whole else None

    def _plain(self, work: Work, ramp: Ramp | None) -> Cost:
        """What is summed of its cost: of what is limited here, all but the ramp."""
        return {
            name: amount
            for name, amount in work.cost.items()
            if name in self.capacity and (ramp is None or name != ramp.resource)
        }


def _tokens(work: Work) -> tuple[int, int]:
    """Of its prompt, and with its foreseen answer; of what nothing is foreseen, by its ramp or its cost."""
    forecast, ramp = work.forecast, work.ramp
    if forecast is not None:
        return forecast.input_tokens, forecast.input_tokens + round(forecast.output.mean)
    if ramp is not None:
        return ramp.base, ramp.base + ramp.steps
    return 0, round(work.cost.get(KV, 0.0))
