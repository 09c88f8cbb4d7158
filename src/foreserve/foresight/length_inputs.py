"""Features of many requests as the arrays that a network reads: numbers, a sparse bag of hashes, and meanings.

Which hashes are looked at is a vocabulary, chosen from the samples: the ones seen most. The feature sets of the
ablations leave groups of inputs out, so that all of them are one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.length_features import MEANING, PAST, Features, FeatureSet
from foreserve.foresight.length_text import SHARES

Single = NDArray[np.float32]
Integers = NDArray[np.int64]

MOST_WORDS: Final = 4096
MOST_INSTRUCTION_WORDS: Final = 1024
MOST_APPS: Final = 512
LEAST_SEEN: Final = 3
"""Samples that must hold a hash for it to be looked at."""

KNOTS: Final = np.linspace(0.0, 11.0, 23)
"""Log input lengths at which a piecewise linear function of it may bend."""

_LENGTHS: Final = 1 + len(KNOTS)
_APP_PAST: Final = PAST // 2
_OTHERS: Final = 2 + len(SHARES) + 1 + _APP_PAST
DENSE: Final = _LENGTHS + _APP_PAST + _OTHERS
"""Numbers of a request: of its input's length, of its application's past, and the rest."""


class Vocabulary(msgspec.Struct, frozen=True, eq=False):
    """The row of each 16-bit hash (-1: not looked at) and the applications' hashes, sorted: `size` rows, in order."""

    words: NDArray[np.int32]
    instruction: NDArray[np.int32]
    apps: NDArray[np.uint64]
    size: int

    @classmethod
    def made_of(cls, words: NDArray[np.int32], instruction: NDArray[np.int32], apps: NDArray[np.uint64]) -> Vocabulary:
        """Counts the rows once."""
        return cls(words, instruction, apps, int((words >= 0).sum() + (instruction >= 0).sum() + len(apps)))

    @classmethod
    def of(cls, samples: Sequence[Features], features: FeatureSet) -> Vocabulary:
        """What at least `LEAST_SEEN` of the samples hold, the most common first where there are too many."""
        words = _common([s.words for s in samples], MOST_WORDS if features == "usin" else 0)
        instruction = _common(
            [s.instruction for s in samples], MOST_INSTRUCTION_WORDS if features in ("inst", "usin") else 0
        )
        apps, seen = np.unique(np.array([s.app for s in samples if s.app], np.uint64), return_counts=True)
        order = np.argsort(-seen, kind="stable")
        kept = order[seen[order] >= LEAST_SEEN][: 0 if features == "uilo" else MOST_APPS]
        instruction[instruction >= 0] += (words >= 0).sum()
        return cls.made_of(words, instruction, np.sort(apps[kept]))


class Inputs(msgspec.Struct, frozen=True, eq=False):
    """Of n requests. The bag is sparse: entry i gives request `rows[i]` (sorted) `values[i]` times row `columns[i]`."""

    dense: Single
    rows: Integers
    columns: Integers
    values: Single
    meaning: Single | None

    def __len__(self) -> int:
        return len(self.dense)

    def merged(self, width: int) -> Inputs:
        """With the same column twice of one request as one entry of both, as training needs it; columns < `width`."""
        place, inverse = np.unique(self.rows * max(width, 1) + self.columns, return_inverse=True)
        summed = np.bincount(inverse, self.values, minlength=len(place)).astype(np.float32)
        return Inputs(self.dense, place // max(width, 1), place % max(width, 1), summed, self.meaning)

    def take(self, chosen: Integers) -> Inputs:
        """Those requests, in this order."""
        starts = np.searchsorted(self.rows, np.arange(len(self) + 1))
        counts = np.diff(starts)[chosen]
        rows = np.repeat(np.arange(len(chosen)), counts)
        first = np.cumsum(counts) - counts
        entries = np.arange(len(rows)) - first[rows] + starts[:-1][chosen][rows]
        meaning = None if self.meaning is None else self.meaning[chosen]
        return Inputs(self.dense[chosen], rows, self.columns[entries], self.values[entries], meaning)


def inputs(batch: Sequence[Features], vocabulary: Vocabulary, features: FeatureSet, *, full: bool) -> Inputs:
    """Of features, for a network of this feature set; `full` also reads meanings, which all must then have."""
    rows, columns, values = _bag(batch, vocabulary)
    meaning = None
    if full:
        parts = [np.zeros(2 * MEANING, np.float16) if one.meaning is None else one.meaning for one in batch]
        meaning = np.stack(parts).astype(np.float32)
        if features != "usin":
            meaning[:, MEANING:] = 0.0
        if features in ("uilo", "raft"):
            meaning[:, :MEANING] = 0.0
    return Inputs(_dense(batch, features), rows, columns, values, meaning)


def log_inputs(batch: Sequence[Features]) -> NDArray[np.float64]:
    """The logarithm of each input's length in tokens, at least 0."""
    return np.log(np.maximum(np.array([one.input_tokens for one in batch], np.float64), 1.0))


def _dense(batch: Sequence[Features], features: FeatureSet) -> Single:
    counts = np.array([(one.input_tokens, one.prompt_tokens, one.most) for one in batch], np.float64)
    logs = np.log(np.maximum(counts, 1.0))
    found = np.zeros((len(batch), DENSE), np.float32)
    found[:, 0] = logs[:, 0] / 8
    width = KNOTS[1] - KNOTS[0]
    found[:, 1:_LENGTHS] = np.maximum(0.0, 1.0 - np.abs(logs[:, :1] - KNOTS) / width)
    if features == "uilo":
        return found
    past = np.stack([one.past for one in batch])
    past[:, [0, 1, 3, 4]] /= 4
    found[:, _LENGTHS : _LENGTHS + _APP_PAST] = past[:, :_APP_PAST]
    if features == "usin":
        others = found[:, _LENGTHS + _APP_PAST :]
        others[:, 0] = (logs[:, 1] - logs[:, 0]) / 4
        others[:, 1] = logs[:, 2] / 8 - 1
        others[:, 2:-_APP_PAST] = np.stack([one.shares for one in batch])
        others[:, -_APP_PAST - 1] /= 5
        others[:, -_APP_PAST:] = past[:, _APP_PAST:]
    return found


def _bag(batch: Sequence[Features], vocabulary: Vocabulary) -> tuple[Integers, Integers, Single]:
    """Each group of a request's hashes has about the same length, however many there are."""
    owners, columns, values = [], [], []
    apps = np.array([one.app for one in batch], np.uint64)
    for table, hashes in (
        (vocabulary.words, [one.words for one in batch]),
        (vocabulary.instruction, [one.instruction for one in batch]),
    ):
        counts = np.array([len(ids) for ids in hashes])
        found = table[np.concatenate(hashes)].astype(np.int64)
        owner = np.repeat(np.arange(len(batch)), counts)
        value = np.repeat(1.0 / np.sqrt(np.maximum(counts, 1)), counts)
        owners.append(owner[found >= 0])
        columns.append(found[found >= 0])
        values.append(value[found >= 0])
    if len(vocabulary.apps):
        places = np.minimum(np.searchsorted(vocabulary.apps, apps), len(vocabulary.apps) - 1)
        known = np.flatnonzero(vocabulary.apps[places] == apps)
        owners.append(known)
        columns.append(places[known] + vocabulary.size - len(vocabulary.apps))
        values.append(np.ones(len(known)))
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable") if len(batch) > 1 else np.arange(len(owner))
    return owner[order], np.concatenate(columns)[order], np.concatenate(values).astype(np.float32)[order]


def _common(hashes: Sequence[NDArray[np.uint16]], most: int) -> NDArray[np.int32]:
    """Rows for the hashes that most of the samples hold, by hash."""
    rows = np.full(2**16, -1, np.int32)
    held = np.zeros(2**16, np.int64)
    for ids in hashes:
        held[ids] += 1  # counts a hash once for each sample
    order = np.argsort(-held, kind="stable")[:most]
    chosen = np.sort(order[held[order] >= LEAST_SEEN])
    rows[chosen] = np.arange(len(chosen), dtype=np.int32)
    return rows
