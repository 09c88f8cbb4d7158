"""Trains the recurrent forecaster, in a process of its own: a scaled series comes in, weights go out.

PreServe's settings: mean squared error of the next window, Adam at 0.001, batches of 32, 50 epochs, seed 42.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.workload_recurrent import HIDDEN, INPUTS, Weights

if TYPE_CHECKING:
    import torch

BATCH: Final = 32
EPOCHS: Final = 50
MOST_UPDATES: Final = 1500
"""Of the weights, which bounds a training to ten seconds or so of one core."""

RATE: Final = 1e-3
SEED: Final = 42


def train(scaled: NDArray[np.float32]) -> Weights:
    """The same for the same series. Computes in one thread, for the rest of the process too."""
    import torch

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(SEED)

    def made(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = (torch.rand(*shape, generator=random) * 2.0 - 1.0) * HIDDEN**-0.5
        return drawn.requires_grad_()

    weights = {
        "mx": made(1, HIDDEN), "mh": made(HIDDEN, HIDDEN), "x": made(1, 4 * HIDDEN), "m": made(HIDDEN, 4 * HIDDEN),
        "b": made(4 * HIDDEN), "out": made(HIDDEN, 1), "bias": made(1),
    }  # fmt: skip
    windows = np.lib.stride_tricks.sliding_window_view(scaled, INPUTS + 1)
    rows = torch.from_numpy(np.ascontiguousarray(windows))
    optimiser = torch.optim.Adam(weights.values(), lr=RATE)
    for _ in range(min(EPOCHS, -(-MOST_UPDATES * BATCH // len(rows)))):
        for batch in torch.split(torch.randperm(len(rows), generator=random), BATCH):
            optimiser.zero_grad()
            loss = torch.nn.functional.mse_loss(_run(weights, rows[batch, :-1]), rows[batch, -1])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return Weights.of({name: weight.detach().numpy() for name, weight in weights.items()})


def _run(weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """As `workload_recurrent.run`, to be differentiated."""
    import torch

    hidden = inputs.new_zeros(len(inputs), HIDDEN)
    cell = inputs.new_zeros(len(inputs), HIDDEN)
    for step in range(inputs.shape[1]):
        x = inputs[:, step : step + 1]
        m = (x * weights["mx"]) * (hidden @ weights["mh"])
        gates = x * weights["x"] + m @ weights["m"] + weights["b"]
        enter, forget, leave, new = gates.chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
    told: torch.Tensor = (hidden @ weights["out"] + weights["bias"])[:, 0]
    return told


def main() -> None:
    """From standard input to standard output; ends itself after the seconds named, should nobody else."""
    signal.alarm(int(sys.argv[1]))
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # requests go first
    weights = train(np.frombuffer(sys.stdin.buffer.read(), dtype=np.float32))
    sys.stdout.buffer.write(msgspec.msgpack.encode(weights))


if __name__ == "__main__":
    main()
