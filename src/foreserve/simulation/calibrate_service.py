"""Measures a service of ours: its engine in a worker process as it is served, and what the gateway does before that."""

from __future__ import annotations

from statistics import median
from typing import Final

import msgspec

from foreserve.clock import precise
from foreserve.engines.profile import EngineProfile
from foreserve.errors import ConfigError, RequestError
from foreserve.fleet.local import LocalLauncher
from foreserve.ports import Launcher
from foreserve.services.llm import LLM
from foreserve.services.llm_prompt import Sampling
from foreserve.simulation.calibrate import calibrate
from foreserve.simulation.calibrate_plan import Effort, Tell

_ASKED: Final = 30
_WORDS: Final = 100
"""Of the conversation that is prepared: a prompt of everyday length."""


async def calibrate_service(
    name: str, kind: LLM, effort: Effort, *, tell: Tell = lambda done, what: None, launcher: Launcher | None = None
) -> EngineProfile:
    """The profile of one replica's engine, in a process of this machine unless a `launcher` says otherwise.

    Raises ConfigError, or EngineStartError when it fails on the way.
    """
    if not kind.settings.bounds[1]:
        raise ConfigError(f"service {name!r} has no replicas: there is no engine to measure; valid: at least 1")
    kind.prepare(lambda done, what: tell(0.0, what))
    spec = kind.engines()[0]
    if kind.engine_name == "simulated":  # it tells each token only where it is asked to
        spec = msgspec.structs.replace(spec, options={**spec.options, "emit_every": 1})
    launcher = launcher or LocalLauncher()
    try:
        what = f"{name}: {kind.settings.model} ({kind.engine_name})"
        profile = await calibrate(launcher, spec, kind.text.vocabulary, effort, name=what, tell=tell, ready=kind.ready)
    finally:
        await launcher.close()
    return msgspec.structs.replace(profile, overhead_s=profile.overhead_s + await asking_s(kind))


async def asking_s(kind: LLM) -> float:
    """Seconds from a request's arrival to its dispatcher: its prompt rendered, tokenised and foreseen. The median."""
    told: list[float] = []
    for at in range(_ASKED):
        words = " ".join(f"word{(at * _WORDS + word) % 997}" for word in range(_WORDS))
        messages = [{"role": "user", "content": words}]
        began = precise()
        try:
            payload = await kind.chat(messages, Sampling(max_tokens=16))
        except RequestError:  # no chat template, or too small a context: then nobody asks like this
            return 0.0
        await kind.about_chat(messages, payload, "default")
        told.append(precise() - began)
    return median(told[_ASKED // 3 :])
