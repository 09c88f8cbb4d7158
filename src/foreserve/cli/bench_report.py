"""What `foreserve bench` shows: a progress bar while it runs, then a table, notes and JSON."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.records import Ending
from foreserve.loadgen.run import Limits, Progress, Run
from foreserve.loadgen.stats import Distribution, Summary, Targets, WarmUp

LATE_S = 0.05
"""When p99 of the send lag is above this, the figures speak of the client."""

_SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization")


class ProgressBar:
    """A rich progress bar over a run; nothing when quiet or when the console is no terminal."""

    def __init__(self, console: Console, limits: Limits, quiet: bool) -> None:
        self._limits = limits
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[counts]}"),
        )
        self._bar = Bar(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)
        self._task = self._bar.add_task("bench", total=1.0, counts="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """The bar follows the limit that is nearer to its end."""
        share = max(progress.ended / self._limits.requests, progress.elapsed_s / self._limits.duration_s)
        failed = progress.ended - progress.done
        counts = f"{progress.done} done, {progress.in_flight} running, {failed} not done"
        self._bar.update(self._task, completed=min(share, 1.0), counts=counts)


class Report:
    """A run in the forms that people and programs read."""

    def __init__(
        self,
        options: ClientOptions,
        limits: Limits,
        targets: Targets,
        warm_up: WarmUp,
        summary: Summary,
        outcome: Run,
    ) -> None:
        self.options = options
        self.limits = limits
        self.targets = targets
        self.warm_up = warm_up
        self.summary = summary
        self.outcome = outcome

    def table(self) -> Group:
        """Latencies in milliseconds, then counts and rates."""
        summary = self.summary
        latencies = Table(title=f"{self.options.model} at {self.options.url}", title_justify="left")
        for name in ("milliseconds", "mean", "p50", "p90", "p99", "max"):
            latencies.add_column(name, justify="left" if name == "milliseconds" else "right")
        for name, row in (
            ("TTFT", summary.ttft),
            ("TPOT", summary.tpot),
            ("ITL", summary.itl),
            ("end-to-end", summary.e2e),
            ("refusal", summary.refusal),
        ):
            if row is not None:
                latencies.add_row(name, *_milliseconds(row))
        rates = Table(show_header=False)
        rates.add_column()
        rates.add_column(justify="right")
        rates.add_column()
        for cells in self._rows():
            rates.add_row(*cells)
        return Group(latencies, rates) if latencies.row_count else Group(latencies.title or "", rates)

    def _rows(self) -> list[tuple[str, str, str]]:
        summary = self.summary
        endings = [f"{count} {name}" for name, count in summary.endings.items() if name != Ending.DONE]
        rows = [
            ("requests done", f"{summary.done} / {summary.requests}", ", ".join(endings)),
            ("window", f"{summary.window_s:.1f}", "s"),
            ("offered", f"{summary.offered_per_s:.2f}", "requests/s"),
            ("throughput", f"{summary.requests_per_s:.2f}", "requests/s"),
            ("output tokens", f"{summary.output_tokens_per_s:.1f}", "tokens/s"),
            ("prompt tokens", f"{summary.prompt_tokens_per_s:.1f}", "tokens/s"),
        ]
        if self.targets != Targets():
            rows.append(("goodput", f"{summary.goodput_per_s:.2f}", "requests/s"))
            rows.append(("good", f"{100 * summary.good_fraction:.1f}", "% of requests"))
        return rows

    def notes(self) -> list[str]:
        """What a reader must know before believing the figures."""
        summary, notes = self.summary, []
        if summary.lag is not None and summary.lag.p99 > LATE_S:
            notes.append(
                f"the generator itself was late: send lag p99 is {1000 * summary.lag.p99:.0f} ms (over "
                f"{1000 * LATE_S:.0f} ms), so the figures speak of the client; lower the rate, raise --max-in-flight "
                "or give it more cores"
            )
        if self.outcome.unsent:
            notes.append(
                f"{self.outcome.unsent} requests fell due while {self.limits.max_in_flight} ran (--max-in-flight) and "
                "were not sent"
            )
        if summary.counted:
            notes.append(f"{summary.counted} answers had no usage: their output tokens are counted events")
        if summary.unstreamed and self.options.stream:
            notes.append(f"{summary.unstreamed} answers came in one piece although a stream was asked: no TTFT or TPOT")
        abandoned = summary.endings.get(Ending.ABANDONED, 0)
        if abandoned:
            notes.append(f"{abandoned} requests still ran {self.limits.drain_s:g} s after sending ended: cancelled")
        if self.outcome.interrupted:
            notes.append("interrupted: the figures are of what ran until then")
        failed = [result for result in self.outcome.results if result.ending is not Ending.DONE and result.error]
        if failed:
            notes.append(f"first error (status {failed[0].status}): {failed[0].error[:300]}")
        return notes

    def as_json(self, load: dict[str, Any]) -> bytes:
        """One object: `settings`, `summary`, `notes`. Header values that may be secret are left out."""
        options = msgspec.to_builtins(self.options)
        options["headers"] = {
            name: "…" if name.lower() in _SECRET_HEADERS else value for name, value in self.options.headers.items()
        }
        document = {
            "tool": "foreserve bench",
            "settings": {
                "client": options,
                "load": load,
                "limits": msgspec.to_builtins(self.limits),
                "targets": msgspec.to_builtins(self.targets),
                "warm_up": msgspec.to_builtins(self.warm_up),
            },
            "summary": msgspec.to_builtins(self.summary),
            "sending_s": self.outcome.sending_s,
            "unsent": self.outcome.unsent,
            "notes": self.notes(),
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"

    def records(self) -> bytes:
        """One JSON line for each request that was sent, warm-up included; times are seconds since the start."""
        return b"".join(msgspec.json.encode(result, enc_hook=list) + b"\n" for result in self.outcome.results)


def _milliseconds(row: Distribution) -> list[str]:
    return [f"{1000 * value:.1f}" for value in (row.mean, row.p50, row.p90, row.p99, row.max)]
