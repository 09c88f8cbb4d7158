"""The recurrent model of PreServe (arXiv 2504.03702): a multiplicative LSTM on the last 25 windows (the `torch` extra).

m = (W_mx x) * (W_mh h) and the gates are W_x x + W_m m (Krause et al., 2016). One layer of 64 and a linear unit on its
last step. Several steps ahead are foreseen one after another, each from the one before. It is trained in a process of
its own (`workload_training`), so that a server holds no torch for it; what it has learned runs in numpy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.foresight.workload import Floats, Forecaster, Places, Series, filled

INPUTS: Final = 25
HIDDEN: Final = 64

LEAST: Final = 100
MOST: Final = 4032
"""Windows to learn from, at the least and at the most (the newest)."""

LIMIT_S: Final = 300.0
"""After which a training is ended: it takes ten seconds or so."""


class Weights(msgspec.Struct, frozen=True, eq=False):
    """As rows of 32-bit floats, by name, with their shapes."""

    shapes: dict[str, tuple[int, ...]]
    data: dict[str, bytes]

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.float32]]) -> Weights:
        return cls(
            {name: array.shape for name, array in arrays.items()},
            {name: np.ascontiguousarray(array, dtype=np.float32).tobytes() for name, array in arrays.items()},
        )

    def arrays(self) -> dict[str, Floats]:
        return {
            name: np.frombuffer(data, dtype=np.float32).reshape(self.shapes[name]).astype(np.float64)
            for name, data in self.data.items()
        }


class Recurrent:
    """Trained anew each time it learns, the same for the same series. Raises ConfigError without torch."""

    learns: ClassVar[bool] = True
    dear: ClassVar[bool] = True

    def __init__(self) -> None:
        if find_spec("torch") is None:
            raise ConfigError("forecaster 'recurrent' needs torch: pip install 'foreserve[torch]'")
        self._weights: dict[str, Floats] = {}
        self._low = 0.0
        self._span = 1.0

    def fit(self, series: Series, steps: int) -> Forecaster:
        values = filled(series.values)
        values = values[np.isfinite(values)][-MOST - INPUTS :]
        if len(values) < LEAST + INPUTS or not values.max() > values.min():
            raise ValueError(f"{len(values)} windows to learn from; it takes {LEAST + INPUTS}, not all of them alike")
        made = Recurrent()
        made._low, made._span = float(values.min()), float(values.max() - values.min())
        made._weights = _trained((values - made._low) / made._span)
        return made

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        if not self._weights or not len(origins):
            return np.full(len(origins), np.nan)
        values = filled(series.values)
        places = origins[:, None] + np.arange(1 - INPUTS, 1)
        inputs = (np.where(places >= 0, values[np.maximum(places, 0)], np.nan) - self._low) / self._span
        for _ in range(steps):  # what is not known stays so: nan comes out
            inputs = np.column_stack([inputs[:, 1:], run(self._weights, inputs)])
        return np.maximum(0.0, inputs[:, -1] * self._span + self._low)


def run(weights: dict[str, Floats], inputs: Floats) -> Floats:
    """What comes next, for each row of scaled windows."""
    hidden = cell = np.zeros((len(inputs), HIDDEN))
    for step in range(inputs.shape[1]):
        x = inputs[:, step : step + 1]
        m = (x * weights["mx"]) * (hidden @ weights["mh"])
        gates = x * weights["x"] + m @ weights["m"] + weights["b"]
        enter, forget, leave, new = np.split(gates, 4, axis=1)
        cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
        hidden = _sigmoid(leave) * np.tanh(cell)
    told: Floats = (hidden @ weights["out"] + weights["bias"])[:, 0]
    return told


def _sigmoid(x: Floats) -> Floats:
    half: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))  # does not overflow
    return half


def _trained(scaled: Floats) -> dict[str, Floats]:
    """The weights for this series (0 to 1). Raises ValueError with the reason when the training fails."""
    command = [sys.executable, "-m", "foreserve.foresight.workload_training", str(int(LIMIT_S) + 5)]
    path = os.pathsep.join(part for part in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if part)
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    data = scaled.astype(np.float32).tobytes()
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
            env=env,
            start_new_session=True,  # Ctrl-C is for the server
        )
        return msgspec.msgpack.decode(done.stdout, type=Weights).arrays()
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"its training failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        raise ValueError(f"its training failed: {error}") from error
