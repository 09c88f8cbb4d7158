"""Scaling by two thresholds, the plainest reactive way: one more when replicas are too full, one fewer when too empty.

Source: the reactive baseline of PreServe (arXiv 2504.03702).
"""

from __future__ import annotations

from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_need import backlog
from foreserve.fleet.autoscaler_words import waits
from foreserve.scaling import Scale, ScalingView


class Thresholds:
    """`thresholds`: one more above `above`, one fewer below `below`, of how full ready replicas are on average.

    That is their KV cache where engines tell of it, else their slots; a queue adds what it would fill. It looks every
    `look_s` seconds; while one starts there is no further one. Of what is not known nothing follows.
    """

    def __init__(self, above: float = 0.9, below: float = 0.2, look_s: float = 10.0) -> None:
        if not 0 < below < above:
            raise ConfigError(f"scaling.policy_options: below is {below} and above {above}; valid: 0 < below < above")
        self._above = above
        self._below = below
        self._look_s = look_s
        self._next = float("-inf")

    def decide(self, view: ScalingView, now: float) -> Scale:
        if now < self._next:
            return Scale(wanted=view.active, why=f"it looks every {self._look_s:g} s")
        self._next = now + self._look_s
        ready = [replica for replica in view.replicas if replica.phase == "ready"]
        if not ready:
            return Scale(wanted=max(view.active, min(1, view.waiting.count)), why=f"none is ready; {waits(view)}")
        told = [None if each.load is None else each.load.kv_fraction for each in ready]
        known = [fraction for fraction in told if fraction is not None]
        slots = sum(each.running for each in ready) / max(sum(each.slots for each in ready), 1.0)
        held = sum(known) / len(known) if known else slots
        if view.waiting.count and view.waiting.oldest_s > 1.0:
            held = max(held, 1.0)
        figures = {"held": held, "backlog_s": backlog(view)}
        why = f"replicas are {100 * held:.0f} % full on average; {waits(view)}"
        if held > self._above and view.active == len(ready):
            return Scale(wanted=view.active + 1, why=why, figures=figures)
        if held < self._below and all(each.known for each in ready) and view.active == len(ready):
            return Scale(wanted=view.active - 1, why=why, figures=figures)
        return Scale(wanted=view.active, why=why, figures=figures)
