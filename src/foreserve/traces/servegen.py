"""A trace drawn from ServeGen's distributions: window after window, client beside client, the same for the same seed.

Each window has as many requests as were counted in it. Their gaps are drawn from the family and shape that were fitted
to the client and stretched to fill the window. Windows are drawn by themselves, so that beginning late costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.traces.drawing import Generator, generator
from foreserve.traces.reading import name_of
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.servegen_data import INPUTS, Client, Pdf, Window, pdf, read_clients

LOOKS: Final = "a folder or .tar.xz with chunk-N-trace.csv and chunk-N-dataset.json"

MOST_IN_WINDOW: Final = 5_000_000
"""Requests of all clients in one window, which is held in memory."""


class ServeGenTrace:
    """Implements `Trace`; tenants are the clients. `keep` times the requests, from second `start` to `end`."""

    def __init__(
        self,
        path: Path,
        clients: list[Client],
        seed: int = 0,
        *,
        keep: float = 1.0,
        start: float = 0.0,
        end: float = math.inf,
    ) -> None:
        self.header = Header(name=name_of(path))
        self.skipped = 0
        self._path = path
        self._clients = clients
        self._seed = seed
        self._keep = keep
        self._start = start
        self._end = end

    def kept(self, rate: float) -> ServeGenTrace:
        """`rate` times the requests, of each client alike and as bursty: what is not wanted is not drawn."""
        return ServeGenTrace(
            self._path, self._clients, self._seed, keep=self._keep * rate, start=self._start, end=self._end
        )

    def between(self, start: float, end: float) -> ServeGenTrace:
        """From second `start` on, which becomes arrival 0, and before `end`. What is not wanted is not drawn."""
        return ServeGenTrace(
            self._path,
            self._clients,
            self._seed,
            keep=self._keep,
            start=self._start + start,
            end=min(self._end, self._start + end),
        )

    def __len__(self) -> int:
        """Nearly: with a fraction of the requests it is drawn how many each window has."""
        total = 0.0
        for client in self._clients:
            for window in client.windows:
                overlap = min(self._end, window.start + client.window_s) - max(self._start, window.start)
                total += window.rate * max(0.0, overlap)
        return round(total * self._keep)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[TraceRow]:
        self.skipped = 0
        windows: dict[float, list[tuple[Client, Window]]] = {}
        for client in self._clients:
            for window in client.windows:
                if window.rate > 0 and window.start < self._end and window.start + client.window_s > self._start:
                    windows.setdefault(window.start, []).append((client, window))
        lengths = {client.number: _Lengths(client) for client in self._clients}
        for start in sorted(windows):
            yield from self._window(start, windows[start], lengths)

    def _window(
        self, start: float, active: list[tuple[Client, Window]], lengths: dict[int, _Lengths]
    ) -> Iterator[TraceRow]:
        """All clients' requests of one window, in order."""
        ats: list[NDArray[np.float64]] = []
        ins: list[NDArray[np.int64]] = []
        outs: list[NDArray[np.int64]] = []
        owners: list[NDArray[np.int64]] = []
        total = 0
        for client, window in active:
            rng = generator(self._seed, client.number, int(start))
            count = _whole(window.rate * client.window_s * self._keep, rng)
            if not count:
                continue
            if (total := total + count) > MOST_IN_WINDOW:
                raise ConfigError(
                    f"{self._path}: over {MOST_IN_WINDOW} requests in the window at {start:g} s; keep fewer (--rate)"
                )
            at = start + _arrivals(window, count, client.window_s, rng)
            inputs, outputs = lengths[client.number].draw(start, count, rng)
            wanted = (at >= self._start) & (at < self._end)
            ats.append(at[wanted] - self._start)
            ins.append(inputs[wanted])
            outs.append(outputs[wanted])
            owners.append(np.full(int(wanted.sum()), client.number))
        if not ats:
            return
        at = np.concatenate(ats)
        order = np.argsort(at, kind="stable")
        columns = (at, np.concatenate(ins), np.concatenate(outs), np.concatenate(owners))
        tenants = {client.number: f"client-{client.number}" for client, _ in active}
        for arrival, tokens_in, tokens_out, owner in zip(*(c[order].tolist() for c in columns), strict=True):
            yield TraceRow(arrival=arrival, input_tokens=tokens_in, output_tokens=tokens_out, tenant=tenants[owner])


def _whole(expected: float, rng: Generator) -> int:
    """A whole number with that mean: the one below, or by chance the one above."""
    nearest = round(expected)
    if abs(expected - nearest) < 1e-6:  # a rate was a count once
        return int(nearest)
    return math.floor(expected) + int(float(rng.random()) < expected % 1.0)


def _arrivals(window: Window, count: int, window_s: float, rng: Generator) -> NDArray[np.float64]:
    """`count` times within a window: a gap before each and one after the last, which fill it together."""
    gamma = window.family == "Gamma"
    gaps = rng.standard_gamma(window.shape, count + 1) if gamma else rng.weibull(window.shape, count + 1)
    total = float(gaps.sum())
    if not (0.0 < total < math.inf):  # a shape near 0: every gap is nothing, or beyond all numbers
        return np.sort(rng.random(count) * window_s)
    times: NDArray[np.float64] = np.minimum(np.cumsum(gaps[:-1]) / total, 1.0 - 1e-12) * window_s
    return times


class _Lengths:
    """One client's lengths, with the distributions of the six hours that were asked for last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._at = -1
        self._inputs: list[Pdf] = []
        self._output: Pdf | None = None

    def draw(self, second: float, count: int, rng: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and answer lengths of `count` requests that come from `second` on."""
        at = self._place(second)
        if at != self._at:
            self._load(at)
        inputs = np.zeros(count, dtype=np.int64)
        for part in self._inputs:
            inputs += part.draw(rng.random(count))
        assert self._output is not None
        return inputs, self._output.draw(rng.random(count))

    def _place(self, second: float) -> int:
        """The dataset that holds then; where that is empty the nearest before it, else after it, that is not."""
        starts, datasets = self._client.starts, self._client.datasets
        at = max(0, bisect_right(starts, second) - 1)
        nearest: list[int] = [*range(at, -1, -1), *range(at + 1, len(starts))]
        for place in nearest:
            if len(datasets[place].get("output_tokens", "{}")) > 2:
                return place
        raise ConfigError(f"{self._client.where}: no output_tokens in any of its windows")

    def _load(self, at: int) -> None:
        fields = self._client.datasets[at]
        where = f"{self._client.where}: {self._client.starts[at]:g}"
        found = [pdf(fields[name], f"{where}.{name}") for name in INPUTS if name in fields]
        self._inputs = [part for part in found if part is not None]
        self._output = pdf(fields["output_tokens"], f"{where}.output_tokens")
        if not self._inputs:
            raise ConfigError(f"{where}: no lengths of prompts; valid: {', '.join(INPUTS)}")
        self._at = at


def open_servegen(path: Path, *, seed: int = 0) -> ServeGenTrace:
    """All clients of one model. Raises ConfigError."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be at least 0")
    return ServeGenTrace(path, read_clients(path), seed)
