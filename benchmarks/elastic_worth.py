"""What choosing token settings is worth under load, on the virtual clock, with times and accuracies that were measured.

Three loads (steady, bursty, the arrivals of a real trace) at half to twice what plain serving can do. Fixed settings
are served twice: by ordinary dynamic batching, as one deploys a model that has one setting, and under our own policy
with nothing to choose, which tells what the choice alone brings.
"""

from __future__ import annotations

import itertools

from benchmarks.common import Report, console
from benchmarks.elastic_oracle import Bound
from benchmarks.elastic_play import Side, Tally, drawn, simulated
from benchmarks.elastic_switching import Switching
from foreserve.elastic.profile import Profile, interpolated

SIZE = 32
LOADS = (0.5, 1.0, 1.5, 2.0)
KINDS = ("steady", "bursty", "trace")
OURS, PLAIN, SWITCHING = "ours", "plain dynamic batching", "switching"


def sides(profile: Profile, accuracy: dict[str, float], load_s: float) -> list[Side]:
    """Ours and all that it is beside. Switching has the plain model and, for its small one, the fastest setting."""
    seconds = {each: interpolated(profile, profile.seconds[each], SIZE, 1) for each in accuracy}
    capacity = SIZE / seconds["plain"]
    models = {each: accuracy[each] for each in ("plain", min(accuracy, key=lambda each: seconds[each]))}
    return [
        Side(name=OURS, plans=accuracy),
        *(Side(name=f"{each} alone", plans={each: value}) for each, value in accuracy.items()),
        *(
            Side(name=f"{each}, ordinary", plans={each: value}, policy="deferred", engine={"usual": each})
            for each, value in accuracy.items()
            if each != "plain"
        ),
        Side(name=PLAIN, plans={"plain": accuracy["plain"]}, policy="deferred"),
        Side(
            name=SWITCHING,
            plans=models,
            engine={"load_s": load_s, "models": [*models]},
            made=lambda profile, _, plans: Switching(profile, plans, capacity, size=SIZE),
        ),
    ]


def worth(report: Report, name: str, profile: Profile, accuracy: dict[str, float], load_s: float, quick: bool) -> None:
    """Play all loads to all sides. The keys have `name` before them where it is not empty."""
    unit = interpolated(profile, profile.seconds["plain"], 8, 1)
    capacity = SIZE / interpolated(profile, profile.seconds["plain"], SIZE, 1)
    count = 400 if quick else 3000
    totals: dict[str, float] = {}
    bound = 0.0
    least = 9.0
    for kind, share in itertools.product(KINDS, LOADS):
        queries = drawn(kind, share * capacity, count, unit, seed=1)
        line: dict[str, Tally] = {}
        for side in sides(profile, accuracy, load_s):
            line[side.name] = simulated(side, profile, queries, SIZE, seed=0)
            totals[side.name] = totals.get(side.name, 0.0) + line[side.name].utility
        most = Bound(profile, queries, accuracy, SIZE).lowest()
        bound += most
        alone = max((each for each in line if each.endswith(" alone")), key=lambda each: line[each].utility)
        least = min(least, line[OURS].utility / line[alone].utility)
        told = ", ".join(f"{part} {value:.2f}" for part, value in line[OURS].shares().items())
        report.note(
            f"{name or 'vision'}, {kind} at {share:g}: ours {line[OURS].utility:.0f} ({told}); {alone} "
            f"{line[alone].utility:.0f}; plain {line[PLAIN].utility:.0f}; switching {line[SWITCHING].utility:.0f}; "
            f"at most {most:.0f}"
        )
        console.print(f"{name or 'vision'}: {kind} at {share:g} done")
    best = max((each for each in totals if each.endswith(" alone")), key=lambda each: totals[each])
    ordinary = max((each for each in totals if each.endswith(", ordinary")), key=lambda each: totals[each])
    mine, dash = totals[OURS], f"{name}_" if name else ""
    report.note(f"{name or 'vision'}: over all loads the best of one setting are {best} and {ordinary}")
    report.add(f"{dash}utility_vs_best_fixed", mine / totals[best], "1.25")
    report.add(f"{dash}utility_vs_best_fixed_ordinary", mine / max(totals[ordinary], totals[PLAIN]), "1.25")
    report.add(f"{dash}utility_vs_best_fixed_worst_load", least, "1")
    report.add(f"{dash}bound_vs_best_fixed", bound / totals[best], "what nobody exceeds")
    report.add(f"{dash}utility_vs_switching", mine / totals[SWITCHING], "1.25")
    report.add(f"{dash}utility_vs_plain_batching", mine / totals[PLAIN], "1.25")
    report.add(f"{dash}utility_vs_oracle", mine / bound, "near 1")
