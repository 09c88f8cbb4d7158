from __future__ import annotations

import io
import math

from benchmarks.scaling_report import table
from benchmarks.scaling_runs import Ran, Way
from rich.console import Console


def ran(never: int) -> Ran:
    took = [0.5] * (100 - never) + [math.inf] * never
    return Ran(
        way=Way("hybrid", "hybrid"), load="s", requests=100, late=never, replica_hours=2.0, need_hours=1.0, starts=0,
        ttft=took, normalised=took, e2e=took, width_s=3600.0, need=[1.0], paid=[2.0],
    )  # fmt: skip


def shown(never: int) -> str:
    written = io.StringIO()
    console = Console(width=120, file=written)
    console.print(table({"s": [ran(never)]}))
    return written.getvalue()


def test_where_more_than_one_in_a_hundred_was_never_done_the_tail_is_never():
    assert shown(2).count("never") == 2


def test_a_tail_that_was_done_is_a_number():
    assert "0.500" in shown(0)
    assert "0.50 s" in shown(0)
    assert "never" not in shown(0)
