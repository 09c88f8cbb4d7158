"""One measured load from a benchmark: the load generator of `foreserve bench`, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import uvloop

from foreserve.loadgen.arrivals import Arrival, ClosedLoop, generator
from foreserve.loadgen.client import Client, ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.run import Limits, Run, run


async def send(
    options: ClientOptions,
    prompts: Sequence[Prompt],
    arrivals: Iterable[Arrival] | ClosedLoop,
    limits: Limits,
    *,
    seed: int = 0,
) -> Run:
    """A run on the running loop; `seed` is that of the waits between retries."""
    async with Client(options, generator(seed)) as client:
        return await run(client, prompts, arrivals, limits)


def send_now(options: ClientOptions, prompts: Sequence[Prompt], arrivals: ClosedLoop, limits: Limits) -> Run:
    """As `send`, on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(options, prompts, arrivals, limits))
