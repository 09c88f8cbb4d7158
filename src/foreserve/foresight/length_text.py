"""Texts as bags of hashed words and pairs of words, many texts at once and without a loop over words.

A hash is 16 bits and its text is gone: what is kept of a prompt for learning names no word and no order but that of
its first and last ones. (Who already has a guess can test it; delete what must not be kept.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

HEAD_CHARS: Final = 640
TAIL_CHARS: Final = 448
"""What is looked at of a long text: questions stand first or last."""

HEAD_WORDS: Final = 64
TAIL_WORDS: Final = 48
MARKED: Final = 3
"""So many words from each end are hashed once more, as words of that place."""

MOST_HASHES: Final = 2 * (HEAD_WORDS + TAIL_WORDS) - 1 + 2 * MARKED
"""Hashes of one text at most."""

SHARES: Final = ("digits", "upper", "spaces", "newlines", "questions", "code", "marks", "foreign")
"""What `shares` counts: bytes of each class over all bytes looked at."""

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_PLACES: Final = 24
"""Letters after these count no more in a word's hash."""


def _tables() -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int8], NDArray[np.uint64]]:
    """For each byte: what it adds to a hash (as a small letter), whether it is part of a word, its class; and by place.

    Bytes of letters beyond ASCII are words' too.
    """
    letters = np.arange(256, dtype=np.uint64)
    upper = (letters >= ord("A")) & (letters <= ord("Z"))
    digits = (letters >= ord("0")) & (letters <= ord("9"))
    foreign = letters >= 128
    small = (letters >= ord("a")) & (letters <= ord("z"))
    values = np.where(upper, letters + np.uint64(32), letters) + np.uint64(1)
    values = (values * _MIX) ^ (values << np.uint64(23))
    classes = np.full(256, len(SHARES), np.int8)
    marked = {"spaces": b" \t", "newlines": b"\n", "questions": b"?", "code": b"{}();=<>[]_", "marks": b".,:!'\"-*#|/&"}
    for name, members in marked.items():
        classes[list(members)] = SHARES.index(name)
    for name, where in (("digits", digits), ("upper", upper), ("foreign", foreign)):
        classes[where] = SHARES.index(name)
    places = np.cumprod(np.full(_PLACES, np.uint64(0xD6E8FEB86659FD93)), dtype=np.uint64)
    return values, upper | digits | foreign | small, classes, places


_VALUES, _WORD, _CLASSES, _BY_PLACE = _tables()


def hashed(texts: Sequence[str]) -> tuple[list[NDArray[np.uint16]], NDArray[np.float32]]:
    """The hashes of each text, `MOST_HASHES` at most, and its shares: one row of `len(SHARES) + 1` for each.

    The last of a row is the logarithm of one more than the words looked at. Deterministic everywhere; half a surrogate
    pair counts as a question mark.
    """
    parts = [_part(text).encode("utf-8", "replace") + b" " for text in texts]
    sizes = np.array([len(part) for part in parts])
    letters = np.frombuffer(b"".join(parts), np.uint8)
    row_of_letter = np.repeat(np.arange(len(parts)), sizes)
    words, row = _words(letters, row_of_letter)
    counts = np.bincount(row, minlength=len(parts))
    firsts = np.cumsum(counts) - counts
    classes = np.bincount(
        row_of_letter * (len(SHARES) + 1) + _CLASSES[letters], minlength=len(parts) * (len(SHARES) + 1)
    )
    shares = np.empty((len(parts), len(SHARES) + 1), np.float32)
    shares[:, :-1] = classes.reshape(len(parts), -1)[:, :-1] / sizes[:, None]
    shares[:, -1] = np.log1p(counts)
    place = np.arange(len(words)) - firsts[row]
    left = counts[row] - place
    keep = (place < HEAD_WORDS) | (left <= TAIL_WORDS)
    pairs = np.empty_like(words)
    pairs[1:] = _mixed(words[:-1] * np.uint64(3) + words[1:])
    marked = (place < MARKED) | (left <= MARKED)
    ends_here = np.where(place < MARKED, place, -left).astype(np.uint64)
    kinds = (
        (_mixed(words), keep),
        (pairs, keep & (place > 0)),
        (_mixed(words + _mixed(ends_here + np.uint64(77))), marked),
    )
    ids = np.concatenate([(values >> np.uint64(48)).astype(np.uint16)[where] for values, where in kinds])
    owners = np.concatenate([row[where] for _, where in kinds])
    ids = ids[np.argsort(owners, kind="stable")]
    return np.split(ids, np.cumsum(np.bincount(owners, minlength=len(parts)))[:-1]), shares


def _part(text: str) -> str:
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"


def _words(letters: NDArray[np.uint8], row: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A value for each word, in order, and the text that it is of. Every text ends in a space, so no word spans two."""
    inside = np.flatnonzero(_WORD[letters])
    if len(inside) == 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    begins = np.empty(len(inside), np.bool_)
    begins[0] = True
    np.not_equal(inside[1:], inside[:-1] + 1, out=begins[1:])
    firsts = np.flatnonzero(begins)
    place = np.arange(len(inside)) - firsts[np.cumsum(begins) - 1]
    adds = _VALUES[letters[inside]] * _BY_PLACE[np.minimum(place, _PLACES - 1)]
    return np.add.reduceat(adds, firsts), row[inside[firsts]]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well spread over the upper bits."""
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return (values ^ (values >> np.uint64(29))) * _MIX
