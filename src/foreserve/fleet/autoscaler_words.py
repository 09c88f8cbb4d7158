"""What a scaling decision says of the figures behind it."""

from __future__ import annotations

from foreserve.fleet.autoscaler_need import Need, backlog
from foreserve.scaling import LoadForecast, ScalingView


def amount(value: float) -> str:
    """As a person reads it: three digits, or the whole number where there are more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def asked(found: Need, forecast: LoadForecast | None, view: ScalingView) -> str:
    """What is to come, or came of late, beside what one replica can do."""
    measure = found.measure.replace("_", " ")
    against = f"against {amount(found.each)} per replica"
    if forecast is None:
        return f"{amount(found.per_s)} {measure}/s of late {against} (nothing is foreseen yet)"
    in_s, window = forecast.at - view.at, f"{amount(forecast.window_s)} s"
    when = f"for the next {window}" if in_s < 1.0 else f"for the {window} that begin in {amount(in_s)} s"
    told = f"p{100 * forecast.level:.0f}, {forecast.model.replace('_', ' ')}"
    return f"forecast {amount(found.per_s)} {measure}/s {when} ({told}) {against}"


def waits(view: ScalingView) -> str:
    """What is in the queue."""
    waiting = view.waiting
    if not waiting.count:
        return "nothing waits"
    said = "1 waits" if waiting.count == 1 else f"{waiting.count:,} wait"
    work = backlog(view)
    if work > 0:
        said += f", {amount(work)} s of work for one replica"
    if waiting.predicted_wait_s is not None:
        said += f", predicted wait {amount(waiting.predicted_wait_s)} s"
    return said


def times(count: int, noun: str = "replica") -> str:
    """`1 replica`, `3 replicas`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
