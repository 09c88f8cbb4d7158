"""What a pipeline's requests will ask of services: how many calls each, by how its maps fanned out of late.

A request whose deadline passes in its middle has done its first stages in vain, and held up others. So it is refused
when it comes where some service has more before it, in what waits and what running requests will still ask, than it can
do by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foreserve.dispatch.admission import LEAST_RETRY_S
from foreserve.errors import Shed
from foreserve.pipelines.invoking import CallStep
from foreserve.pipelines.learned import Learned
from foreserve.pipelines.plan import Plan, Scope
from foreserve.ports import QueueView
from foreserve.services.pipeline_stages import ServiceStage


def service_stages(scope: Scope, of: tuple[Scope, ...] = ()) -> Iterator[tuple[ServiceStage, tuple[Scope, ...]]]:
    """The stages that are services, in a scope and within it, each with the maps' bodies that it stands in."""
    for step in scope.steps:
        if isinstance(step, CallStep) and isinstance(step.stage, ServiceStage):
            yield step.stage, of
        if (body := getattr(step, "body", None)) is not None:
            yield from service_stages(body, (*of, body))


def expected_calls(plan: Plan, learned: Learned, names: Mapping[ServiceStage, str]) -> dict[str, float]:
    """How many calls a request will make of each service: of each stage the product of the fan-outs around it.

    Nothing is expected of a stage within a map that has never been over: nobody is refused on a guess. `names` has the
    service of each stage.
    """
    found: dict[str, float] = {}
    for stage, bodies in service_stages(plan.root):
        calls = 1.0
        for body in bodies:
            facts = learned.maps.get(body.name)
            calls *= 0.0 if facts is None else facts.children
        found[names[stage]] = found.get(names[stage], 0.0) + calls
    return found


class Promises:
    """The calls that running requests are still expected to make: `total` by service."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self._of: dict[str, dict[str, float]] = {}

    def make(self, request_id: str, calls: Mapping[str, float]) -> None:
        """A request begins, and these calls are expected of it."""
        self._of[request_id] = dict(calls)
        for name, count in calls.items():
            self.total[name] = self.total.get(name, 0.0) + count

    def kept(self, request_id: str, name: str) -> None:
        """It has made one of them; what it makes beyond what was expected changes nothing."""
        left = self._of.get(request_id, {})
        if (count := min(1.0, left.get(name, 0.0))) > 0:
            left[name] -= count
            self.total[name] -= count

    def over(self, request_id: str) -> None:
        """It makes no more. Unknown requests are ignored."""
        for name, count in self._of.pop(request_id, {}).items():
            self.total[name] -= count
        if not self._of:
            self.total.clear()  # no rounding is left over


def refusal(
    calls: Mapping[str, float], promised: Mapping[str, float], views: Mapping[str, QueueView], left_s: float
) -> Shed | None:
    """Why a request of so many `calls`, due in `left_s` seconds, cannot be done by then; `None` where it can. Pure.

    The oldest request goes first, so each service has before it what waits there and what running requests are still
    expected to ask (`promised`). At the service's pace that takes a time, and it cannot be done sooner.
    """
    for name, count in calls.items():
        view = views[name]
        ahead = view.waiting + promised.get(name, 0.0)
        seconds = (ahead + count) * _pace(view)
        if count and ahead and seconds > left_s:
            return Shed(
                f"{name!r} has {view.waiting} calls waiting, {promised.get(name, 0.0):.0f} more are expected of "
                f"requests that run and {count:.0f} of this one: {seconds:.1f} s of work, and its deadline is in "
                f"{left_s:.1f} s",
                retry_after=max(LEAST_RETRY_S, seconds - left_s),
            )
    return None


def _pace(view: QueueView) -> float:
    """Seconds from one call to the next; 0 until that is known."""
    if view.waiting and view.seconds_between_starts is not None:
        return view.seconds_between_starts
    return (view.seconds_per_request or 0.0) / (view.slots or 1.0)
