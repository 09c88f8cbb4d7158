"""What every benchmark shares: its arguments, its report (JSON, table, picture) and medians with spread."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from foreserve.simulation.machine import cores, processor, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
console = Console()


def arguments(
    description: str | None,
    argv: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], object] | None = None,
) -> argparse.Namespace:
    """`--quick` and `--json FILE`, and what `more` adds to the parser."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke form, within 90 s; claims come from the full one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as one JSON object")
    if more is not None:
        more(parser)
    return parser.parse_args(argv)


def median(values: Sequence[float]) -> float:
    """Of at least one value."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest."""
    return float(min(values)), float(max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Run by run, for sides that were measured in turn: drift of the machine then falls out."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def commit() -> str:
    """The commit that was measured, with `-dirty` when tracked files differ from it; `unknown` outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and Python. No name of the host."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "memory_gib": round(int(told("/proc/meminfo", "MemTotal").split()[0] or 0) / 2**20, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


class Report:
    """The result of one benchmark: filled in as it runs, then shown and written.

    Its JSON is one object: `name`, `commit`, `machine`, `settings`, `figures` (key: number), `spread` (key: low and
    high), `notes`.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.figures: dict[str, float] = {}
        self.spread: dict[str, tuple[float, float]] = {}
        self.goals: dict[str, str] = {}
        self.notes: list[str] = []
        # What was measured is the tree as it was at the start.
        self.commit = commit()

    def add(self, key: str, values: Sequence[float] | float, goal: str = "") -> float:
        """A figure: the median of its repetitions, with their spread. `goal` is words for the table."""
        repeated = [float(values)] if isinstance(values, int | float) else list(values)
        self.figures[key] = median(repeated)
        if len(repeated) > 1:
            self.spread[key] = spread(repeated)
        if goal:
            self.goals[key] = goal
        return self.figures[key]

    def note(self, text: str) -> None:
        """Something that a reader of the figures must know; said once."""
        if text not in self.notes:
            self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "commit": self.commit,
            "machine": machine(),
            "settings": self.settings,
            "figures": self.figures,
            "spread": {key: list(bounds) for key, bounds in self.spread.items()},
            "notes": self.notes,
        }

    def table(self) -> Table:
        """Medians, lowest and highest."""
        table = Table(title=f"{self.name} ({self.commit[:10]})", title_justify="left")
        table.add_column("figure")
        for name in ("median", "low", "high"):
            table.add_column(name, justify="right")
        table.add_column("goal")
        for key, value in self.figures.items():
            low, high = (_short(bound) for bound in self.spread[key]) if key in self.spread else ("", "")
            table.add_row(key, _short(value), low, high, self.goals.get(key, ""))
        return table

    def finish(self, path: Path | None) -> None:
        """Print the table and notes; write the JSON when a file is named."""
        console.print(self.table())
        for text in self.notes:
            console.print(f"note: {text}", markup=False, highlight=False)
        if path is not None:
            path.write_text(json.dumps(self.as_dict(), indent=2) + "\n")


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


@contextmanager
def picture(name: str, title: str, columns: int = 1) -> Iterator[list[Axes]]:
    """Axes side by side to draw on; saved as `benchmarks/results/NAME.png` at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(6.0 * columns, 4.5), squeeze=False, layout="constrained")
    try:
        figure.suptitle(title)
        yield list(axes[0])
        RESULTS.mkdir(exist_ok=True)
        figure.savefig(RESULTS / f"{name}.png", dpi=130)
        console.print(f"picture: {(RESULTS / f'{name}.png').relative_to(ROOT)}", markup=False, highlight=False)
    finally:
        pyplot.close(figure)


def bars(axes: Axes, values: Mapping[str, Sequence[float]], unit: str) -> None:
    """A bar for each name: its median, with the spread of its repetitions as a line."""
    medians = [median(repeated) for repeated in values.values()]
    low = [middle - min(repeated) for middle, repeated in zip(medians, values.values(), strict=True)]
    high = [max(repeated) - middle for middle, repeated in zip(medians, values.values(), strict=True)]
    drawn = axes.bar(list(values), medians, yerr=[low, high], capsize=4)
    axes.bar_label(drawn, labels=[_short(value) for value in medians], padding=3)
    axes.set_ylabel(unit)
    axes.margins(y=0.15)
