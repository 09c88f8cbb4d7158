"""Whatever a recording can write, a reader of traces takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as some

from foreserve import App
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.engines.forwarding import Forward
from foreserve.engines.generation import Generate
from foreserve.gateway.recording import Recordings
from foreserve.traces.own import open_own
from tests.gateway.scripted import ScriptedLLM

numbers = some.floats() | some.floats(0, 1e-5) | some.floats(0, 1e6)
words = some.text(some.characters(), max_size=20)
payloads = (
    some.builds(Generate, prompt=some.lists(some.integers(-1, 2**33), max_size=40), max_tokens=some.integers(-1, 2**40))
    | some.builds(
        Forward,
        path=some.sampled_from(["/v1/chat/completions", "/v1/completions", "/other"]),
        body=some.binary(max_size=60) | some.just(b'{"messages": [{"role": "user", "content": "why?"}], "n": 2}'),
        max_tokens=some.none() | some.integers(-1, 2**40),
    )
    | some.none()
    | some.dictionaries(words, numbers, max_size=2)
)
usages = some.dictionaries(some.sampled_from(["prompt_tokens", "output_tokens"]), numbers)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=some.lists(
        some.tuples(payloads, words, numbers, some.none() | numbers, numbers, some.sampled_from(OutcomeKind), usages),
        min_size=1,
        max_size=4,
    ),
    answer=some.none() | words,
)
def test_every_row_that_can_be_written_is_taken(
    tmp_path: Path, asked: list[tuple[Any, ...]], answer: str | None
) -> None:
    async def written() -> bytes:
        recordings = Recordings(App(chat=ScriptedLLM(), state={"history": False}).run())
        recording = recordings.begin(tenant=None, block_tokens=16, text=True, seconds=None)
        lines = b""
        for n, (payload, tenant, arrival, deadline, utility, kind, usage) in enumerate(asked):
            request = Request(
                id=f"r{n}",
                service="chat",
                payload=payload,
                arrival=arrival,
                deadline=deadline,
                utility=utility,
                tenant=tenant,
            )
            recordings.came(None, request, Tapped())
            for observer in recordings._running.observers:
                observer(
                    Outcome(
                        id=request.id,
                        service="chat",
                        kind=kind,
                        arrival=arrival,
                        ended=utility,
                        started=deadline,
                        first=deadline,
                        usage=usage,
                    )
                )
        while lines.count(b"\n") < 1 + len(asked) and b':"lost"' not in lines:
            lines += await recording.next() or b""
        return lines

    path = tmp_path / "recording.jsonl"
    path.write_bytes(asyncio.run(written()))
    rows = list(open_own(path, sort=True))
    assert len(rows) <= len(asked)
    event("some rows" if rows else "none")


class Tapped:
    """A stream, as far as a recording wants one."""

    tap: Any = None
