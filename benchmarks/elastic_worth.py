"""What choosing token settings is worth under load, on the virtual clock, with times and accuracies that were measured.

Three loads (steady, bursty, the arrivals of a real trace) at half to twice what plain serving can do, of several tasks
on one encoder. Fixed settings are served twice: by ordinary dynamic batching, as one deploys a model that has one
setting, and under our own policy with nothing to choose, which tells what the choice alone brings. A setting is fixed
for all loads, as it is deployed before they are known; beside that stands the best one of each load, which only
hindsight could choose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import msgspec

from benchmarks.common import Report
from benchmarks.elastic_oracle import Bound
from benchmarks.elastic_play import Plans, Side, Tally, drawn, simulated
from benchmarks.elastic_switching import Switching
from foreserve.elastic.profile import Profile, interpolated
from foreserve.simulation.machine import cores

SIZE = 32
LOADS = (0.5, 1.0, 1.5, 2.0)
KINDS = ("steady", "bursty", "trace")
OURS, PLAIN, SWITCHING = "ours", "plain dynamic batching", "switching"
ALONE, ORDINARY = " alone", ", ordinary"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is served: `plans` with their accuracies, by task, in the times of `profile`.

    `small` is the setting that stands for a smaller model of the same speed and accuracy, and `load_s` what loading the
    other of the two takes.
    """

    profile: Profile
    plans: Plans
    small: str
    load_s: float

    def seconds(self, setting: str, size: int) -> float:
        """Of a batch."""
        return interpolated(self.profile, self.profile.seconds[setting], size, 1)

    @property
    def capacity(self) -> float:
        """What plain serving answers a second, in full batches."""
        return SIZE / self.seconds("plain", SIZE)

    def alone(self, setting: str) -> Plans:
        """With this setting for every task; a task that has no such prompts is plain."""
        found = {}
        for task, allowed in self.plans.items():
            kept = setting if setting in allowed else "plain"
            found[task] = {kept: allowed[kept]}
        return found


def sides(case: Case) -> list[Side]:
    """Ours and all that it is beside."""
    settings = dict.fromkeys(each for allowed in case.plans.values() for each in allowed)
    models = (case.small, "plain")
    everywhere = [each for each in settings if all(each in allowed for allowed in case.plans.values())]
    return [
        Side(name=OURS, plans=case.plans),
        *(Side(name=each + ALONE, plans=case.alone(each)) for each in settings),
        *(
            Side(name=each + ORDINARY, plans=case.alone(each), policy="deferred", engine={"usual": each})
            for each in everywhere
            if each != "plain"
        ),
        Side(name=PLAIN, plans=case.alone("plain"), policy="deferred"),
        Side(
            name=SWITCHING,
            plans={task: {each: allowed[each] for each in models} for task, allowed in case.plans.items()},
            engine={"load_s": case.load_s, "models": models},
            made=lambda profile: Switching(profile, models, case.capacity, size=SIZE),
        ),
    ]


def point(case: Case, kind: str, share: float, count: int, seed: int) -> tuple[dict[str, Tally], float]:
    """What came of one load at one rate on every side, and what nobody can exceed."""
    queries = drawn(kind, share * case.capacity, count, case.seconds("plain", 8), seed, [*case.plans])
    line = {side.name: simulated(side, case.profile, queries, SIZE, seed=0) for side in sides(case)}
    return line, Bound(case.profile, queries, case.plans, SIZE).lowest()


Line = tuple[dict[str, Tally], float]


def played(case: Case, count: int, told: Callable[[float], None]) -> dict[tuple[str, float], Line]:
    """All loads, one in each process. `told` hears how much is done."""
    found: dict[tuple[str, float], Line] = {}
    points = [*itertools.product(KINDS, LOADS)]
    with ProcessPoolExecutor(max_workers=max(1, int(cores())), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(point, case, *each, count, 1): each for each in points}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            told(len(found) / len(points))
    return {each: found[each] for each in points}


def worth(report: Report, name: str, case: Case, quick: bool, told: Callable[[float], None]) -> None:
    """Play all loads to all sides. The keys have `name` before them where it is not empty."""
    lines = played(case, 200 if quick else 3000, told)
    what, dash = name or "vision", f"{name}_" if name else ""
    totals: dict[str, float] = {}
    bound = hindsight = 0.0
    least = float("inf")
    for (kind, share), (line, most) in lines.items():
        for side, tally in line.items():
            totals[side] = totals.get(side, 0.0) + tally.utility
        bound += most
        alone = _best({side: tally.utility for side, tally in line.items()}, ALONE)
        hindsight += line[alone].utility
        least = min(least, line[OURS].utility / line[alone].utility)
        shares = ", ".join(f"{part} {value:.2f}" for part, value in line[OURS].shares().items())
        report.note(
            f"{what}, {kind} at {share:g}: ours {line[OURS].utility:.0f} ({shares}); {alone} "
            f"{line[alone].utility:.0f}; plain {line[PLAIN].utility:.0f}; switching {line[SWITCHING].utility:.0f}; "
            f"at most {most:.0f}; ours ran {_told(line[OURS])}"
        )
    best, ordinary = _best(totals, ALONE), _best(totals, ORDINARY)
    mine = totals[OURS]
    report.note(f"{what}: over all loads the best of one setting are {best} and {ordinary}")
    report.note(f"{what}, all loads: {', '.join(f'{side} {mine / value:.3f}' for side, value in totals.items())}")
    report.add(f"{dash}utility_vs_best_fixed", mine / totals[best], "1.25")
    report.add(f"{dash}utility_vs_best_fixed_in_hindsight", mine / hindsight, "above 1")
    report.add(f"{dash}utility_vs_best_fixed_ordinary", mine / max(totals[ordinary], totals[PLAIN]), "1.25")
    report.add(f"{dash}utility_vs_best_fixed_worst_load", least, "1")
    report.add(f"{dash}bound_vs_best_fixed", bound / totals[best], "what nobody exceeds")
    report.add(f"{dash}utility_vs_switching", mine / totals[SWITCHING], "1.25")
    report.add(f"{dash}utility_vs_plain_batching", mine / totals[PLAIN], "1.25")
    report.add(f"{dash}utility_vs_oracle", mine / bound, "near 1")


def _best(utility: dict[str, float], kind: str) -> str:
    return max((each for each in utility if each.endswith(kind)), key=utility.__getitem__)


def _told(tally: Tally) -> str:
    return ", ".join(f"{setting} {count}" for setting, count in tally.settings.most_common())
