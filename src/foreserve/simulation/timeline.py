"""A run as a Chrome trace, for https://ui.perfetto.dev: who ran where and when, written while it is simulated.

A service is a process and each slot of a replica a thread of it. A request is a slice there, with its prefill and
decode within; its wait is an asynchronous slice of the service, since waits overlap. Counters tell the course.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgspec

from foreserve.core import Outcome
from foreserve.simulation.figures import Result, Scaling, Series

COUNTERS: Final = ("waiting", "running", "ready", "need", "wanted", "foreseen")

_SLOTS: Final = 100_000
"""Thread ids that one replica may use."""


class Timeline:
    """Writes the first `most` requests that end, and the courses of all; memory grows with replicas and slots alone.

    A context: the file is whole once it is left. Times in the file are microseconds of simulated time.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most
        self._written = 0
        self._file: BinaryIO | None = None
        self._first = True
        self._services: dict[str, int] = {}
        self._replicas: dict[str, _Slots] = {}

    def __enter__(self) -> Self:
        """Raises OSError when the file cannot be written."""
        self._file = self._path.open("wb")
        self._file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.write(b"\n]}\n")
        self._file.close()

    def ended(self, outcome: Outcome) -> None:
        """An observer of outcomes. Those beyond the bound are left out."""
        if self._written >= self._most:
            return
        self._written += 1
        pid = self._service(outcome.service)
        self._wait(outcome, pid)
        if outcome.started is not None and outcome.replica is not None:
            self._run(outcome, pid, outcome.started, outcome.replica)

    def courses(self, result: Result) -> None:
        """How many waited, ran, were ready, wanted and would have been needed, window by window, and who scaled why."""
        for name, service in result.services.items():
            series: Series = service.series
            if service.scaling is not None:
                self._scalings(name, service.scaling, result.start_s)
            for counter in COUNTERS:
                values: list[float | None] = getattr(series, counter)
                for index, value in enumerate(values):
                    if value is not None:
                        at = _us(result.start_s + index * series.width_s)
                        self._put(ph="C", pid=self._service(name), name=counter, ts=at, args={counter: round(value, 4)})

    def _scalings(self, name: str, scaling: Scaling, start_s: float) -> None:
        """Marks on the service's own track."""
        pid = self._service(name)
        for each in scaling.decisions:
            words = {"name": f"{each.active} to {each.granted} replicas", "cat": "scaling", "s": "p"}
            about = {"why": each.why, "wanted": each.wanted, **each.figures}
            self._put(ph="i", pid=pid, tid=0, ts=_us(start_s + each.at), **words, args=about)

    def _wait(self, outcome: Outcome, pid: int) -> None:
        """From its arrival to its start, or to its end where it never started. None for who did not wait.

        They are named alike: a viewer has a track for each name.
        """
        until = outcome.ended if outcome.started is None else outcome.started
        if outcome.started == outcome.arrival:
            return
        about: dict[str, Any] = {
            "request": outcome.id,
            "tenant": outcome.tenant,
            "ahead when it came": outcome.ahead,
            "started while it waited": outcome.before,
        }
        if outcome.forecast is not None:
            about["tokens expected"] = round(outcome.forecast.output.p50)
        name = "queue"
        if outcome.started is None:
            name = f"queue, then {outcome.kind.value}"
            about["reason"] = outcome.reason
        words = {"cat": "queue", "id": outcome.id, "pid": pid, "tid": 0, "name": name}
        self._put(ph="b", ts=_us(outcome.arrival), **words, args=about)
        self._put(ph="e", ts=_us(until), **words)

    def _run(self, outcome: Outcome, pid: int, started: float, replica: str) -> None:
        """On the slot that has been free for the shortest time, so that as few slots as may be are used."""
        if replica not in self._replicas:
            self._replicas[replica] = _Slots(len(self._replicas) * _SLOTS + 1)
        tid, new = self._replicas[replica].take(started, outcome.ended)
        if new is not None:
            self._put(ph="M", pid=pid, tid=tid, name="thread_name", args={"name": f"{replica} slot {new}"})
            self._put(ph="M", pid=pid, tid=tid, name="thread_sort_index", args={"sort_index": tid})
        about = {
            "tenant": outcome.tenant,
            "outcome": outcome.kind.value if not outcome.reason else f"{outcome.kind.value}: {outcome.reason}",
            "prompt tokens": int(outcome.usage.get("prompt_tokens", 0)),
            "output tokens": int(outcome.usage.get("output_tokens", 0)),
            "waited (s)": round(started - outcome.arrival, 6),
            "why": outcome.why,
            "ran there already": outcome.running,
            "attempt": outcome.attempt + 1,
        }
        if outcome.again:
            about["again"] = outcome.again
        start, end = _us(started), _us(outcome.ended)
        words = {"ph": "X", "pid": pid, "tid": tid}
        self._put(**words, name=outcome.id, cat="run", ts=start, dur=end - start, args=about)
        if outcome.first is not None and outcome.first >= started:
            first = min(_us(outcome.first), end)
            self._put(**words, name="to the first token", cat="step", ts=start, dur=first - start)
            if end > first:
                self._put(**words, name="decode", cat="step", ts=first, dur=end - first)

    def _service(self, name: str) -> int:
        if name not in self._services:
            self._services[name] = pid = len(self._services) + 1
            self._put(ph="M", pid=pid, name="process_name", args={"name": f"service {name}"})
        return self._services[name]

    def _put(self, **event: Any) -> None:
        assert self._file is not None
        if not self._first:
            self._file.write(b",\n")
        self._first = False
        self._file.write(msgspec.json.encode(event))


class _Slots:
    """Rows for one replica's requests, none of which overlap within a row. They come in the order of their ends."""

    def __init__(self, first_tid: int) -> None:
        self._next = first_tid
        self._first = first_tid
        self._free: list[tuple[int, int]] = []  # (end of its last request in microseconds, row)

    def take(self, started: float, ended: float) -> tuple[int, int | None]:
        """The thread id of a row that is free by then, and its number where the row is new."""
        at = bisect_right(self._free, (_us(started), self._next)) - 1
        new = None
        if at >= 0:
            _, tid = self._free.pop(at)
        else:
            tid, new = self._next, self._next - self._first
            self._next += 1
        insort(self._free, (_us(ended), tid))
        return tid, new


def _us(seconds: float) -> int:
    return round(1e6 * seconds)
