"""What each tenant has had, in tokens over its weight, so that a flood of one does not starve another.

The virtual token counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with a burst: a
tenant may be ahead of the one that has had least by so many tokens before it must let others go first.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping

from foreserve.errors import ConfigError

MOST_TENANTS = 1024
"""Beyond these, tenants that are new share one account while no other can be closed."""

OTHERS = "(others)"


def checked_weights(weights: Mapping[str, float] | None, where: str) -> dict[str, float]:
    """`tenant_weights` as a policy's options have them. Raises ConfigError that begins with `where`."""
    for tenant, weight in (weights or {}).items():
        if not 0 < weight < math.inf:
            raise ConfigError(f"{where}: `tenant_weights`: {tenant!r} has {weight}; it must be above 0")
    return dict(weights or {})


class Account:
    """One tenant: its counter, and how many of its requests wait in each line."""

    __slots__ = ("name", "tokens", "waiting")

    def __init__(self, name: str, tokens: float, lines: int) -> None:
        self.name = name
        self.tokens = tokens
        self.waiting = [0] * lines


class Tenants:
    """Counters of the tenants, in several lines of waiting work: who waits in each, least served first.

    A tenant that comes, or comes back, starts at the least counter of those that wait: being away saves nothing up.
    """

    def __init__(self, weights: Mapping[str, float], lines: int, most: int = MOST_TENANTS) -> None:
        self._weights = dict(weights)
        self._lines: list[list[tuple[float, str]]] = [[] for _ in range(lines)]
        self._most = most
        self._accounts: dict[str, Account] = {}
        self._floor = 0.0

    def account(self, tenant: str) -> str:
        """The name of a tenant's account, opened when it has none. It is not closed while any of its work waits."""
        known = self._accounts.get(tenant)
        if known is None:
            if len(self._accounts) >= self._most and not self._close_one():
                tenant = OTHERS
            known = self._accounts.setdefault(tenant, Account(tenant, self._floor, len(self._lines)))
        if not any(known.waiting):
            known.tokens = max(known.tokens, self._floor)
        return tenant

    def join(self, name: str, line: int) -> None:
        """One more of an account's requests waits in `line`."""
        account = self._accounts[name]
        account.waiting[line] += 1
        if account.waiting[line] == 1:
            insort(self._lines[line], (account.tokens, name))

    def leave(self, name: str, line: int) -> None:
        """One of those that joined left `line`."""
        account = self._accounts[name]
        account.waiting[line] -= 1
        if account.waiting[line] == 0:
            self._take_out(account, line)

    def charge(self, name: str, tokens: float) -> None:
        """Count `tokens` that it was given; fewer than 0 give some back. A closed account is not charged."""
        account = self._accounts.get(name)
        if account is None:
            return
        present = [line for line, count in enumerate(account.waiting) if count] if any(account.waiting) else ()
        for line in present:
            self._take_out(account, line)
        account.tokens += self.weighed(name, tokens)
        for line in present:
            insort(self._lines[line], (account.tokens, name))
        if any(self._lines):
            self._floor = max(self._floor, min(line[0][0] for line in self._lines if line))
        else:
            self._floor = max(self._floor, account.tokens)

    def tokens(self, name: str) -> float:
        """What an open account has had, over its weight."""
        return self._accounts[name].tokens

    def level(self, tenant: str) -> float:
        """What a tenant would have, over its weight, were one of its requests to wait now."""
        known = self._accounts.get(self.name(tenant))
        if known is None:
            return self._floor
        return known.tokens if any(known.waiting) else max(known.tokens, self._floor)

    def name(self, tenant: str) -> str:
        """The name of the account that a tenant has now, or would most likely be given; none is opened."""
        return OTHERS if tenant not in self._accounts and OTHERS in self._accounts else tenant

    def waiting(self, name: str) -> int:
        """How many wait of an account, in all lines."""
        known = self._accounts.get(name)
        return sum(known.waiting) if known is not None else 0

    def count(self, line: int) -> int:
        """How many accounts wait in `line`."""
        return len(self._lines[line])

    def weighed(self, name: str, tokens: float) -> float:
        """What `tokens` count for an account."""
        return tokens / self._weights.get(name, 1.0)

    def before(self, name: str, level: float, burst: float, tokens: float) -> tuple[float, float]:
        """How many requests of `tokens` of an account start before one of a tenant at `level`: at least, at most.

        Until it is within `burst` of the other it goes alone; once it is `burst` beyond, it lets the other go.
        """
        each = max(self.weighed(name, tokens), 1e-9)
        away = level - self._accounts[name].tokens
        return max((away - burst) / each, 0.0), max((away + burst) / each + 1.0, 0.0)

    def takes_part(self, tenant: str, line: int, burst: float) -> bool:
        """Whether a tenant would be within `burst` of who has had least in `line`, were it to wait there now."""
        entries = self._lines[line]
        return not entries or self.level(tenant) <= entries[0][0] + burst

    def most_before(self, tenant: str, line: int, burst: float, tokens: float, rows: int, most: int) -> float:
        """How many can start before a tenant's request, all of its own that wait before it, in batches of `rows`.

        All are taken to be of `tokens` tokens, and tenants beyond the first `most` to be like those.
        """
        name = self.name(tenant)
        own = self.waiting(name)
        level = self.level(tenant) + own * self.weighed(name, tokens)
        others = [other for _, other in self._lines[line][:most] if other != name]
        if not others:
            return float(own)
        found = 0.0
        for other in others:
            found += min(self.before(other, level, burst, tokens)[1] + rows - 1, self.waiting(other))
        return own + found * (self.count(line) - (own > 0)) / len(others)

    def front(self, line: int, burst: float, most: int) -> tuple[list[str], list[str]]:
        """Who waits in `line`, least served first: those within `burst` of the first, and others; `most` in all."""
        waiting = self._lines[line][:most]
        if not waiting:
            return [], []
        cut = bisect_right(waiting, waiting[0][0] + burst, key=lambda entry: entry[0])
        names = [name for _, name in waiting]
        return names[:cut], names[cut:]

    def _take_out(self, account: Account, line: int) -> None:
        entries = self._lines[line]
        del entries[bisect_left(entries, (account.tokens, account.name))]

    def _close_one(self) -> bool:
        """Close the account of who waits for nothing and has had least: little is forgotten with it."""
        idle = [account for account in self._accounts.values() if not any(account.waiting)]
        if not idle:
            return False
        # An eighth at once, so that looking through all of them is rare.
        for account in sorted(idle, key=lambda account: account.tokens)[: max(1, self._most // 8)]:
            del self._accounts[account.name]
        return True
