"""A trained model of answer lengths: what it predicts, and the one file that holds it.

Made by `length_training.train`; here it is only read. Predictions of one request do not depend on what else is in its
batch (but for the last digits of floating point).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.core import Length
from foreserve.errors import ConfigError
from foreserve.foresight import length_network as network
from foreserve.foresight.length_distribution import CELLS, EDGES, LEVELS, LOG_EDGES, Floats, level_of, means, read
from foreserve.foresight.length_features import VERSION as FEATURES_VERSION
from foreserve.foresight.length_features import Features, FeatureSet
from foreserve.foresight.length_inputs import Vocabulary, inputs, log_inputs
from foreserve.foresight.length_network import Bins, Weights

VERSION: Final = 1
CALIBRATION: Final = 33
"""Points of the map from what the network takes for a quantile to what it turned out to be."""

BEYOND: Final = 2.0
"""Times the longest answer seen: longer ones, which the second expert might expect of long inputs, are not expected."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is, besides its arrays. `samples` it was trained on; `loss` on its own held-out part (nats)."""

    features: FeatureSet
    full: bool
    samples: int
    loss: float
    mean_scale: float
    version: int = VERSION
    features_version: int = FEATURES_VERSION


class _Unusable(ValueError):
    """A file that is a model's, and why it is not taken."""


class Model:
    """Predicts from features. Immutable; safe to share between threads."""

    def __init__(
        self,
        about: About,
        vocabulary: Vocabulary,
        bins: Bins,
        weights: Mapping[str, NDArray[np.float32]],
        calibration: Floats,
    ) -> None:
        """`calibration`: at `CALIBRATION` even levels, the share of held-out answers below what was taken for them."""
        self.about = about
        self.vocabulary = vocabulary
        self.bins = bins
        self.weights: Weights = dict(weights)
        self.calibration = calibration
        self._apps = frozenset(vocabulary.apps.tolist())
        self._cumulative = _spread(bins.length)
        self._top = min(int(np.searchsorted(LOG_EDGES, bins.length[-1] + np.log(BEYOND))), CELLS)
        self._even = np.linspace(0.0, 1.0, CALIBRATION)

    @functools.cached_property
    def digest(self) -> bytes:
        """The same for the same model, in memory and on disk."""
        return _digest(msgspec.json.encode(self.about), self._arrays()).tobytes()

    @property
    def full(self) -> bool:
        """Whether it reads meanings; without them in its features it would be at a loss."""
        return self.about.full

    @property
    def source(self) -> str:
        """What its lengths say that they come from: `full` or `fast`."""
        return "full" if self.about.full else "fast"

    def knows(self, one: Features) -> bool:
        """Whether requests of this application were among those it learned from; those of none are all alike."""
        return one.app == 0 or self.about.features == "uilo" or one.app in self._apps

    def predict(self, batch: Sequence[Features], levels: Sequence[float] = LEVELS) -> list[Length]:
        """One length for each, in order. `levels` are read as p50, p80 and p95 (see `Coverage`).

        Raises ValueError when a full model is given features without a meaning.
        """
        if not batch:
            return []
        raw = self.distribution(batch)
        most = np.array([max(one.most, 1) for one in batch], np.float64)
        mean = means(raw, most) * self.about.mean_scale
        wanted = np.interp(levels, self.calibration, self._even)
        return read(raw, [one.most for one in batch], self.source, levels=np.tile(wanted, (len(batch), 1)), mean=mean)

    def distribution(self, batch: Sequence[Features]) -> Floats:
        """Each one's distribution function at `EDGES`, before calibration: (requests, edges)."""
        if self.full and any(one.meaning is None for one in batch):
            raise ValueError("a model of the full tier needs features made with an encoder")
        read_in = inputs(batch, self.vocabulary, self.about.features, full=self.full)
        return self.mixed(network.run(self.weights, self.bins, read_in), log_inputs(batch))

    def mixed(self, found: network.Outputs, log_input: NDArray[np.float64]) -> Floats:
        """The experts' bins, mixed and spread over the grid."""
        by_length = found.length @ self._cumulative
        edges = self.bins.ratio
        cumulative = np.zeros((len(by_length), len(edges)))
        np.cumsum(found.ratio, axis=1, out=cumulative[:, 1:])
        at = LOG_EDGES - log_input[:, None]
        left = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(edges) - 2)
        share = np.clip((at - edges[left]) / (edges[left + 1] - edges[left]), 0.0, 1.0)
        low = np.take_along_axis(cumulative, left, axis=1)
        by_ratio = low + share * (np.take_along_axis(cumulative, left + 1, axis=1) - low)
        total = found.gate[:, :1] * by_length + found.gate[:, 1:] * by_ratio
        # What the second expert takes for shorter than one token is one token.
        total[:, 0] = 0.0
        total[:, self._top :] = 1.0
        return cast(Floats, np.maximum.accumulate(np.minimum(total, 1.0), axis=1))

    def levels_of(self, batch: Sequence[Features], tokens: Floats) -> Floats:
        """Where in its calibrated distribution each answer of so many tokens fell, 0 to 1."""
        return np.interp(level_of(self.distribution(batch), tokens), self._even, self.calibration)

    # --- its file

    def save(self, path: Path) -> None:
        """One file, written whole or not at all. Raises OSError."""
        arrays = self._arrays()
        about = msgspec.json.encode(self.about)
        named = {**arrays, "about": np.frombuffer(about, np.uint8), "digest": _digest(about, arrays)}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **cast(Any, named))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote. Raises ConfigError for a file that is missing, damaged or of another version."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            written = arrays.pop("about").tobytes()
            about = msgspec.json.decode(written, type=About)
            if (about.version, about.features_version) != (VERSION, FEATURES_VERSION):
                raise _Unusable(
                    f"of version {about.version}.{about.features_version}, not {VERSION}.{FEATURES_VERSION}"
                )
            if not np.array_equal(arrays.pop("digest"), _digest(written, arrays)):
                raise _Unusable("damaged")
            vocabulary = Vocabulary.made_of(arrays["words"], arrays["instruction"], arrays["apps"])
            weights = {name: arrays[f"w_{name}"] for name in network.NAMES}
            return cls(about, vocabulary, Bins(arrays["length"], arrays["ratio"]), weights, arrays["calibration"])
        except _Unusable as error:
            raise ConfigError(f"{path}: not a usable length model: {error}") from None
        except OSError as error:
            raise ConfigError(f"{path}: not a usable length model: {error.strerror or 'it cannot be read'}") from None
        except Exception:  # numpy, zip and msgspec each have their own, with advice that is none here
            raise ConfigError(f"{path}: not a usable length model: it is damaged, or something else") from None

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "words": self.vocabulary.words,
            "instruction": self.vocabulary.instruction,
            "apps": self.vocabulary.apps,
            "length": self.bins.length,
            "ratio": self.bins.ratio,
            "calibration": self.calibration,
            **{f"w_{name}": self.weights[name] for name in network.NAMES},
        }


def _digest(about: bytes, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.blake2b(about, digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _spread(edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """(bins, grid edges): how much of a bin is below an edge of the grid, evenly by logarithm within the bin."""
    widths = np.diff(edges)[:, None]
    below = np.clip((LOG_EDGES[None, :] - edges[:-1, None]) / widths, 0.0, 1.0)
    assert below.shape[1] == CELLS + 1 == len(EDGES)
    return below.astype(np.float32)
