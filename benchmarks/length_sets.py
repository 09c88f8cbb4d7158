"""Real pairs as samples of a length predictor, and what it is compared with: predictions that hardly need learning.

Prompts arrive by context in an order of no meaning, the prompts of one passage one after another, and whole contexts
are held out, as a server meets passages that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import Pair, lengths, pairs, split
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_features import Encoder, Features, featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_verdict import Sample

MOST = 32_768
"""`max_tokens` of every request: no answer of these sets is cut."""

Floats = NDArray[np.float64]


class Item(msgspec.Struct, frozen=True, eq=False):
    """A pair with its counts and the features of a request that nothing is known before."""

    pair: Pair
    asked: Asked
    tokens: int
    features: Features


class Arrivals(msgspec.Struct, frozen=True, eq=False):
    """What is learned from, in order of arrival, and what is held out."""

    train: list[Item]
    held: list[Item]

    @property
    def tokens(self) -> Floats:
        """Those held out: the truth."""
        return np.array([item.tokens for item in self.held], np.float64)


def items(source: str, count: int, encoder: Encoder | None) -> list[Item]:
    """`count` pairs of a source, by context in an order of no meaning; with meanings where there is an encoder."""
    found = pairs(source, count)
    turn = {context: index for index, context in enumerate(dict.fromkeys(pair.context for pair in found))}
    found.sort(key=lambda pair: turn[pair.context])
    inputs, prompts = lengths([pair.text for pair in found]), lengths([pair.prompt for pair in found])
    batch = [
        Asked(instruction=pair.instruction, text=pair.text, input_tokens=own, prompt_tokens=whole, most=MOST)
        for pair, own, whole in zip(found, inputs, prompts, strict=True)
    ]
    features = [one for start in range(0, len(batch), 256) for one in featurise(batch[start : start + 256], encoder)]
    answers = lengths([pair.response for pair in found])
    return [Item(*parts) for parts in zip(found, batch, answers, features, strict=True)]


def arrivals(found: Sequence[Item], seed: int) -> Arrivals:
    """A fifth of the contexts held out, another fifth with each seed."""
    _, held = split([item.pair for item in found], 0.2, seed)
    apart = set(map(id, held))
    return Arrivals([i for i in found if id(i.pair) not in apart], [i for i in found if id(i.pair) in apart])


def samples(given: Arrivals, *, full: bool) -> tuple[list[Sample], list[Sample]]:
    """(to learn from, held out): each knows the past of its own time, those held out all that was learned from."""
    history = History()

    def told(item: Item) -> Sample:
        features = item.features
        past = history.past(features.app, features.tenant)
        meaning = features.meaning if full else None
        return Sample(msgspec.structs.replace(features, past=past, meaning=meaning), Ended(tokens=item.tokens))

    learned = []
    for item in given.train:
        learned.append(told(item))
        history.learn_of(item.features.app, item.features.tenant, item.features.input_tokens, learned[-1].ended)
    return learned, [told(item) for item in given.held]


# --- what it is compared with


def baselines(given: Arrivals) -> dict[str, tuple[Floats, Floats]]:
    """By name: predictions of the mean and of the median for what is held out."""
    tokens = np.array([item.tokens for item in given.train], np.float64)
    return {
        "mean": _by(given, tokens, lambda item: 0),
        "input length": _regression(given, tokens),
        "application": _by(given, tokens, lambda item: item.pair.app),
        "histogram": _by(given, tokens, lambda item: item.asked.input_tokens.bit_length()),
    }


def _by(given: Arrivals, tokens: Floats, key: Callable[[Item], object]) -> tuple[Floats, Floats]:
    """Mean and median of each group; of all where a group was not seen."""
    groups: dict[object, list[float]] = {}
    for item, n in zip(given.train, tokens, strict=True):
        groups.setdefault(key(item), []).append(n)
    known = {name: (float(np.mean(group)), float(np.median(group))) for name, group in groups.items()}
    of_all = (float(tokens.mean()), float(np.median(tokens)))
    found = np.array([known.get(key(item), of_all) for item in given.held])
    return found[:, 0], found[:, 1]


def _regression(given: Arrivals, tokens: Floats) -> tuple[Floats, Floats]:
    """On the input's length alone: least squares, and least squares of logarithms, which is nearer to the median."""
    inputs, held = (
        np.array([max(item.asked.input_tokens, 1) for item in group], np.float64) for group in (given.train, given.held)
    )
    line = np.polyval(np.polyfit(inputs, tokens, 1), held)
    power = np.exp(np.polyval(np.polyfit(np.log(inputs), np.log(tokens), 1), np.log(held)))
    return np.maximum(line, 1.0), power


def errors(given: Arrivals, mean: Floats, median: Floats) -> tuple[float, float]:
    """(MAE, RMSE) in tokens: MAE of whichever does better, median or mean; RMSE of the mean."""
    truth = given.tokens
    mae = min(float(np.abs(truth - point).mean()) for point in (np.round(median), mean))
    return mae, float(np.sqrt(((truth - mean) ** 2).mean()))
