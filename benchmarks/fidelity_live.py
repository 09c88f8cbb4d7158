"""The live half of the fidelity benchmark: the workload as a trace, the real server, how each request went there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import replay, replay_watched
from benchmarks.common import ROOT
from benchmarks.continuous_load import closed, send, share_before
from benchmarks.mixes import Ask, Mix
from benchmarks.servers import Server, foreserve, on_cores
from foreserve.core import EngineSpec
from foreserve.engines.profile import EngineProfile
from foreserve.fleet.local import LocalLauncher
from foreserve.loadgen.arrivals import Arrival, generator, poisson
from foreserve.ports import Connection, Listener
from foreserve.services.llm import LLM
from foreserve.settings import StateSettings
from foreserve.simulation.calibrate_plan import Effort
from foreserve.simulation.calibrate_service import calibrate_service
from foreserve.state import HistoryReader, history_file
from foreserve.traces.row import TraceRow

ENGINE, REST = {0}, {1}
"""Cores of the engine; of gateway and clients."""

BLOCK_TOKENS = 32
"""Of the engine's prefix cache."""

APP = """
import msgspec
import foreserve as fs

class Replayed(fs.LLM):
    def engines(self):
        return [
            msgspec.structs.replace(spec, factory={factory!r}, options={{**spec.options, **{options!r}}},
                env={{"PYTHONPATH": {path!r}}})
            for spec in super().engines()
        ]

app = fs.App(chat=Replayed({model!r}, **{words!r}), state={state!r})
"""


class Went(msgspec.Struct, frozen=True, kw_only=True):
    """How a request went, by its outcome. Seconds since its arrival; `None` where that never happened."""

    kind: str
    total_s: float
    first_s: float | None = None
    wait_s: float | None = None
    tokens: int = 0


MISSED = Went(kind="missing", total_s=0.0)
"""Of a request whose outcome is not in the history."""


def rows(asks: Sequence[Ask], arrivals: Sequence[float], model: LLM, max_tokens: int) -> list[TraceRow]:
    """The workload as its trace. Only the engine of a simulation may look at `output_tokens`."""
    return [
        TraceRow(
            arrival=at,
            input_tokens=ask.prompt_tokens,
            output_tokens=min(ask.output_tokens, max_tokens),
            most_tokens=max_tokens,
            tenant=ask.tenant,
            app=_instruction(ask),
            prefix=_prefix(model.text.conversation(ask.messages, 0.0)),
        )
        for ask, at in zip(asks, arrivals, strict=True)
    ]


def _instruction(ask: Ask) -> str:
    return "\n".join(message["content"] for message in ask.messages if message["role"] == "system")


def _prefix(ids: Sequence[int]) -> tuple[int, ...]:
    """A hash of each whole block, with all that is before it."""
    return tuple(int(replay.key(ids[:end])[:15], 16) for end in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS))


def times(rate: float, count: int, seed: int) -> list[float]:
    """When they arrive: a Poisson process, the first at 0."""
    drawn = poisson(rate, generator(seed))
    at = [next(drawn).at for _ in range(count)]
    return [one - at[0] for one in at]


class _Pinned(LocalLauncher):
    """Its workers begin, and stay, on the engine's core."""

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """See `Launcher`."""
        with on_cores(ENGINE):
            return await super().launch(name, spec, listener)


def profiled(model: LLM, effort: Effort) -> EngineProfile:
    """The engine's profile, on the core where it will serve."""

    async def measured() -> EngineProfile:
        return await calibrate_service("chat", model, effort, launcher=_Pinned())

    with on_cores(REST), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured())


class Live:
    """Real servers for one mix, each fresh: it has learned nothing, and its engine has the data's lengths.

    `steps`: the engine notes every step. `control`: a profile whose time is taken in place of computing anything.
    """

    def __init__(
        self,
        mix: Mix,
        model: str,
        words: dict[str, Any],
        max_tokens: int,
        folder: Path,
        *,
        steps: bool = False,
        control: Path | None = None,
    ) -> None:
        self._model = model
        self._words = words
        self._max_tokens = max_tokens
        self._folder = folder
        self._steps = steps
        self._control = control
        self._runs = 0
        self._truths = folder / "truths.json"
        replay.write(self._truths, mix.truths())

    def _server(self, stack: ExitStack, name: str) -> tuple[Server, Path]:
        self._runs += 1
        folder = self._folder / f"run{self._runs}"
        folder.mkdir()
        factory, options = replay.FACTORY, {"truths": str(self._truths)}
        if self._control is not None:
            factory, options = replay_watched.SIMULATED_FACTORY, {**options, "profile": str(self._control)}
        elif self._steps:
            steps = self._folder / f"{name}.steps.jsonl"
            factory, options = replay_watched.STEPPED_FACTORY, {**options, "steps": str(steps)}
        app = folder / "app.py"
        app.write_text(
            APP.format(
                factory=factory,
                options=options,
                path=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                model=self._model,
                words=self._words,
                state={"folder": str(folder)},
            )
        )
        return stack.enter_context(foreserve(str(app), cores=REST, engine_cores=ENGINE)), folder

    def saturation(self, asks: Sequence[Ask], seconds: Sequence[float], slots: int) -> float:
        """How many of `seconds` (what each request costs) a full house does in a second."""
        with ExitStack() as stack:
            server, _ = self._server(stack, "saturation")
            full = closed(server.url, asks, slots + 8, self._max_tokens, REST)
        last = max(result.sent for _, result in full)  # until then every slot is taken
        cost = dict(zip((ask.key for ask in asks), seconds, strict=True))
        return sum(cost[ask.key] * share_before(last, result) for ask, result in full) / last

    def run(self, asks: Sequence[Ask], arrivals: Sequence[float], name: str) -> list[Went]:
        """An open load on a server of its own, run to empty; how each went, by the server's own outcomes."""
        with ExitStack() as stack:
            server, folder = self._server(stack, name)
            due = [Arrival(at) for at in arrivals]
            done = send(server.url, [ask.as_prompt() for ask in asks], due, self._max_tokens, REST)
        history = HistoryReader(history_file(StateSettings(folder=str(folder))))
        past = {one.id: one for one in history.recent(len(asks) + 100)}
        found: list[Went] = []
        for result in done.results:
            one = past.get(result.request_id or "")
            found.append(
                MISSED
                if one is None
                else Went(
                    kind=one.kind,
                    total_s=one.total_s,
                    first_s=one.first_s,
                    wait_s=one.wait_s,
                    tokens=int(one.usage.get("output_tokens", 0)),
                )
            )
        return found
