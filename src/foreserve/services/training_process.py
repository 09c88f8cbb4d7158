"""A training in a process of its own, which yields the processor to whatever serves: job in, result out, by pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from foreserve.errors import ForeserveError
from foreserve.services.training import Job, Result, run

NICENESS: Final = 10
LIMIT_S: Final = 600.0
"""A training that takes longer is ended; the next one may have less to read."""

MOST_WORDS: Final = 500


class TrainingFailed(ForeserveError):
    """A training ended without a result; why is told in words."""


async def train_apart(job: Job, limit_s: float = LIMIT_S) -> Result:
    """`run(job)` in a process of its own, which is gone when this returns or is cancelled. Raises TrainingFailed."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "foreserve.services.training_process", str(int(limit_s) + 5)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | one_thread | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the server, which ends its training itself
    )
    try:
        async with asyncio.timeout(limit_s):
            out, words = await process.communicate(msgspec.msgpack.encode(job))
    except TimeoutError:
        raise TrainingFailed(f"it took longer than {limit_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        told = words.decode(errors="replace").strip()[-MOST_WORDS:]
        raise TrainingFailed(f"its process ended with {process.returncode}: {told or 'it said nothing'}")
    try:
        return msgspec.msgpack.decode(out, type=Result)
    except msgspec.DecodeError as error:
        raise TrainingFailed(f"its process gave no result: {error}") from None


def main() -> int:
    """The process: it ends itself after the seconds named as its argument, should nobody else."""
    os.nice(NICENESS)
    signal.alarm(int(sys.argv[1]))
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.msgpack.encode(run(job)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
