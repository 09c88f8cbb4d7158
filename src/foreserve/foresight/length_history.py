"""What lengths answers had of late, by application, tenant and length of the input: known from the first answer on.

Each key has a histogram that forgets: an answer weighs half as much after `half_life` more of its key. Answers that
were cut at `max_tokens` count as longer than that (Kaplan and Meier's estimate), not as that long.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foreserve.core import Length
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_distribution import CELLS, LEVELS, Floats, cell, means, read
from foreserve.foresight.length_features import PAST, Features, app_of, key

HALF_LIFE: Final = 500.0
MOST_KEYS: Final = 2048
ENOUGH: Final = 19.0
"""What the answers of one application or tenant must weigh before its histogram is believed: twenty fresh ones."""

ENOUGH_OF_ALL: Final = 4.9
"""The same for histograms of all requests: five. With less there is nothing but the request's limit."""

_ALL: Final = 0
Key = tuple[str, int, int]


class _Histogram:
    """Answers of one key by cell: those that ended, those that were cut, and sums for means."""

    __slots__ = ("cut", "ended", "grown", "log_ratio", "log_tokens", "weight")

    def __init__(self) -> None:
        self.ended = np.zeros(CELLS)
        self.cut = np.zeros(CELLS)
        self.weight = 0.0
        self.log_tokens = 0.0
        self.log_ratio = 0.0
        self.grown = 1.0

    def learn(self, at: int, ended: Ended, log_tokens: float, log_ratio: float, growth: float) -> None:
        """Later answers weigh more, which is what forgetting is; numbers are brought down before they grow large."""
        self.grown *= growth
        if self.grown > 1e6:
            for numbers in (self.ended, self.cut):
                numbers /= self.grown
            self.weight /= self.grown
            self.log_tokens /= self.grown
            self.log_ratio /= self.grown
            self.grown = 1.0
        grown = self.grown
        (self.cut if ended.censored else self.ended)[at] += grown
        self.weight += grown
        self.log_tokens += grown * log_tokens
        self.log_ratio += grown * log_ratio

    @property
    def count(self) -> float:
        """Answers that still count."""
        return self.weight / self.grown


def _cdfs(histograms: Sequence[_Histogram]) -> Floats:
    """Of each a row, at `EDGES`. What was cut in a cell was at risk up to there; what outlived all ends in the last."""
    ended = np.array([histogram.ended for histogram in histograms])
    leaving = ended + np.array([histogram.cut for histogram in histograms])
    at_risk = np.cumsum(leaving[:, ::-1], axis=1)[:, ::-1]
    hazard = np.divide(ended, at_risk, out=np.zeros_like(ended), where=at_risk > 0)
    found = np.zeros((len(histograms), CELLS + 1))
    found[:, 1:] = 1.0 - np.cumprod(1.0 - hazard, axis=1)
    found[:, -1] = 1.0
    return found


class History:
    """Learns from every request that has ended; bounded: the keys used last are kept. Deterministic."""

    def __init__(self, *, half_life: float = HALF_LIFE, most_keys: int = MOST_KEYS) -> None:
        """`half_life`: answers of a key after which one weighs half as much."""
        self._growth = 2.0 ** (1.0 / half_life)
        self._most_keys = most_keys
        self._known: OrderedDict[Key, _Histogram] = OrderedDict()

    def learn(self, asked: Asked, ended: Ended) -> None:
        """Takes microseconds."""
        self.learn_of(app_of(asked), key(asked.tenant), asked.input_tokens, ended)

    def learn_of(self, app: int, tenant: int, input_tokens: int, ended: Ended) -> None:
        """The same of stored features: with these, in order, a history is made again after a restart."""
        tokens = max(ended.tokens, 1)
        at = cell(tokens)
        log_tokens = math.log(tokens)
        log_ratio = log_tokens - math.log(max(input_tokens, 1))
        known = self._known
        for name in _keys(app, tenant, input_tokens):
            histogram = known.get(name)
            if histogram is None:
                histogram = known[name] = _Histogram()
                if len(known) > self._most_keys:
                    known.popitem(last=False)
            else:
                known.move_to_end(name)
            histogram.learn(at, ended, log_tokens, log_ratio, self._growth)

    def past(self, app: int, tenant: int) -> NDArray[np.float32]:
        """What a model is told of the application and the tenant: of each mean log length, mean log ratio, weight."""
        found = [0.0] * PAST
        for place, name in ((0, ("app", app, -1)), (3, ("tenant", tenant, -1))):
            histogram = self._known.get(name) if name[1] else None
            if histogram is not None:
                share = histogram.count / (histogram.count + 3.0)
                found[place] = share * histogram.log_tokens / histogram.weight
                found[place + 1] = share * histogram.log_ratio / histogram.weight
                found[place + 2] = share
        return np.array(found, np.float32)

    def predict(self, batch: Sequence[Features], levels: Sequence[float] = LEVELS) -> list[Length]:
        """From the narrowest histogram that has seen enough; from the request's own limit where none has."""
        # Many share a histogram and a limit, and so a length.
        places: dict[tuple[Key, int], int] = {}
        chosen: list[_Histogram] = []
        known: list[int | None] = []
        for one in batch:
            name = self._narrowest(one)
            if name is None:
                known.append(None)
                continue
            place = places.setdefault((name, one.most), len(places))
            if place == len(chosen):
                chosen.append(self._known[name])
            known.append(place)
        lengths: list[Length] = []
        if chosen:
            most = [most for _, most in places]
            cdf = _cdfs(chosen)
            mean = means(cdf, np.array([max(limit, 1) for limit in most], np.float64))
            lengths = read(cdf, most, "histogram", levels=np.array([levels]), mean=mean)
        return [_limit(one) if place is None else lengths[place] for one, place in zip(batch, known, strict=True)]

    def _narrowest(self, one: Features) -> Key | None:
        """The name of the narrowest histogram that has seen enough."""
        for name in _keys(one.app, one.tenant, one.input_tokens):
            histogram = self._known.get(name)
            enough = ENOUGH_OF_ALL if name[0] == "all" else ENOUGH
            if histogram is not None and histogram.count >= enough:
                return name
        return None

    def knows(self, app: int) -> bool:
        """Whether enough answers of this application were seen for a histogram of its own."""
        histogram = self._known.get(("app", app, -1))
        return histogram is not None and histogram.count >= ENOUGH

    def forget(self, tenant: str | None = None) -> None:
        """All, or what is kept under a tenant's name. What it added to histograms shared by all fades by itself."""
        wanted = None if tenant is None else key(tenant)
        for name in [name for name in self._known if wanted is None or (name[0] == "tenant" and name[1] == wanted)]:
            del self._known[name]


def _limit(one: Features) -> Length:
    """What is said of a request where nothing is known."""
    limit = float(max(one.most, 1))
    return Length(mean=limit, p50=limit, p80=limit, p95=limit, source="limit")


def _keys(app: int, tenant: int, input_tokens: int) -> list[Key]:
    """From the narrowest to the widest. A bucket doubles the input length."""
    bucket = max(input_tokens, 0).bit_length()
    found: list[Key] = [("app", app, bucket), ("app", app, -1)] if app else []
    return [*found, ("tenant", tenant, bucket), ("all", _ALL, bucket), ("tenant", tenant, -1), ("all", _ALL, -1)]
