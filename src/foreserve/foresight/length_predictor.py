"""The length predictor that serves: a model where one is, else histograms of late, else the request's own limit.

`Length.source` names which. It learns histograms and coverage from every answer at once; models are trained elsewhere
(`length_training.train`) and put in by `swap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from foreserve.core import Length
from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_distribution import LEVELS
from foreserve.foresight.length_features import Encoder, Features, featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_model import Model
from foreserve.foresight.length_verdict import Sample, Verdict, better

STEP: Final = 0.01
"""How far one answer moves a level, for an answer on the wrong side of all its quantile was to hold."""

MOST_DRIFT: Final = 0.15
"""How far a level may drift from its nominal one, and at most half of what is left above or below it."""


_BOUNDS: Final = tuple(
    (nominal, nominal - drift, nominal + drift)
    for nominal, drift in ((nominal, min(MOST_DRIFT, (1 - nominal) / 2)) for nominal in LEVELS)
)
"""Of each level: nominal, lowest, highest."""


class Coverage:
    """Keeps quantiles true while the load changes: levels rise while too many answers are longer, and fall again.

    After Gibbs and Candès, Adaptive conformal inference under distribution shift (2021).
    """

    def __init__(self) -> None:
        self.levels: tuple[float, ...] = LEVELS

    def learn(self, predicted: Length, ended: Ended, most: float = math.inf) -> None:
        """An answer that was cut below a quantile tells nothing of it.

        Neither does any of a quantile that is the request's own `most`: no answer could be longer.
        """
        tokens = ended.tokens
        levels = []
        for (nominal, least, highest), level, quantile in zip(
            _BOUNDS, self.levels, (predicted.p50, predicted.p80, predicted.p95), strict=True
        ):
            if quantile < most and not (ended.censored and tokens <= quantile):
                # How much of the answer's cell is below the quantile: all, none, or a part where it is in the cell.
                above = quantile - (tokens - 0.5)
                level += STEP * (nominal - (0.0 if above < 0.0 else 1.0 if above > 1.0 else above))
                level = least if level < least else highest if level > highest else level
            levels.append(level)
        self.levels = tuple(levels)


class Predictor:
    """Implements `LengthPredictor`. One thread calls it; a model that is swapped in is whole from the next call on."""

    def __init__(
        self, model: Model | None = None, history: History | None = None, encoder: Encoder | None = None
    ) -> None:
        """`encoder` makes it the full tier. Raises ValueError for a full model without one."""
        _check(model, encoder)
        self.history = History() if history is None else history
        self.coverage = Coverage()
        self._model = model
        self._encoder = encoder

    @property
    def model(self) -> Model | None:
        """The one in place."""
        return self._model

    def featurise(self, batch: Sequence[Asked]) -> list[Features]:
        """What to keep of these requests: what is predicted from now is what is learned from later."""
        return featurise(batch, self._encoder, self.history)

    def predict(self, batch: Sequence[Asked]) -> list[Length]:
        return self.predict_features(self.featurise(batch))

    def predict_features(self, batch: Sequence[Features]) -> list[Length]:
        """The same of what `featurise` gave."""
        model = self._model
        if model is None:
            return self.history.predict(batch)
        strange = [not model.knows(one) and self.history.knows(one.app) for one in batch]
        if not any(strange):
            return model.predict(batch, self.coverage.levels)
        known = iter(model.predict([o for o, s in zip(batch, strange, strict=True) if not s], self.coverage.levels))
        return [
            self.history.predict([one])[0] if is_strange else next(known)
            for one, is_strange in zip(batch, strange, strict=True)
        ]

    def learn(self, asked: Asked, ended: Ended, predicted: Length | None = None) -> None:
        """`predicted` is what was said of it, where that is known: quantiles are kept true by it."""
        self.history.learn(asked, ended)
        self._cover(predicted, ended, asked.most)

    def learn_features(self, features: Features, ended: Ended, predicted: Length | None = None) -> None:
        """The same of what `featurise` gave."""
        self.history.learn_of(features.app, features.tenant, features.input_tokens, ended)
        self._cover(predicted, ended, features.most)

    def swap(self, model: Model | None, held_out: Sequence[Sample] = ()) -> Verdict:
        """Put `model` in place, unless it is worse than the one there on `held_out`; `None` takes it away.

        The first model must be no worse than the histograms. Raises ValueError for a full model without an encoder.
        """
        _check(model, self._encoder)
        if model is None:
            self._model = None
            return Verdict(better=True, why="taken away")
        verdict = better(model, self._model or self.history, held_out)
        if verdict.better:
            self._model = model
            self.coverage = Coverage()
        return verdict

    def _cover(self, predicted: Length | None, ended: Ended, most: int) -> None:
        if predicted is not None and self._model is not None and predicted.source == self._model.source:
            self.coverage.learn(predicted, ended, most)


def _check(model: Model | None, encoder: Encoder | None) -> None:
    if model is not None and model.full and encoder is None:
        raise ValueError("a model of the full tier needs an encoder")
